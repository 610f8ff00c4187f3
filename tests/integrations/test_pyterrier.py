"""PyTerrier's pipelines with a reranker of ours in them; no Java is needed."""

from typing import Any

import pytest

from rankrt import InputError, Reranker
from rankrt.artifact.manifest import Artifact

pt: Any = pytest.importorskip("pyterrier", reason="pyterrier is not installed")
pd: Any = pytest.importorskip("pandas")
adapters = pytest.importorskip("rankrt.integrations.pyterrier")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def results() -> Any:
    rows = [
        ["q1", "one", "d1", "two", 9.0, 0],
        ["q2", "four", "d1", "two", 8.0, 0],
        ["q1", "one", "d2", "three", 7.0, 1],
        ["q1", "one", "d3", "three", 6.0, 2],
    ]
    return pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score", "rank"], index=[5, 6, 7, 8])


def scores_of(frame: Any) -> dict[Any, Any]:
    return {(row.qid, row.docno): (row.score, row["rank"]) for _, row in frame.iterrows()}


def test_each_query_s_documents_are_scored_and_ranked(reranker: Reranker, results: Any):
    found = adapters.RankrtReRanker(reranker)(results)
    assert scores_of(found) == {
        ("q1", "d1"): (3.0, 2),
        ("q2", "d1"): (6.0, 0),
        ("q1", "d2"): (4.0, 0),
        ("q1", "d3"): (4.0, 1),
    }
    assert results["score"].tolist() == [9.0, 8.0, 7.0, 6.0], "the given frame stays as it is"


def test_it_is_a_stage_of_a_pipeline(artifact: Artifact, results: Any):
    reranker = adapters.RankrtReRanker(str(artifact.folder), text_field="body", normalize=True, max_length=32)
    pipeline = pt.Transformer.from_df(results.rename(columns={"text": "body"})) >> reranker % 1
    found = pipeline(pd.DataFrame([["q1", "one"]], columns=["qid", "query"]))
    assert scores_of(found) == {("q1", "d2"): (pytest.approx(0.98201376), 0)}


def test_it_says_which_columns_it_makes(reranker: Reranker, results: Any):
    columns = pt.inspect.transformer_outputs(adapters.RankrtReRanker(reranker), ["qid", "query", "docno", "text"])
    assert set(columns) == {"qid", "query", "docno", "text", "score", "rank"}


def test_an_experiment_measures_it(reranker: Reranker, results: Any):
    results.loc[8, "text"] = "zero"  # no ties, which each measure breaks in its own way
    table = pt.Experiment(
        [pt.Transformer.from_df(results), pt.Transformer.from_df(results) >> adapters.RankrtReRanker(reranker)],
        pd.DataFrame([["q1", "one"], ["q2", "four"]], columns=["qid", "query"]),
        pd.DataFrame([["q1", "d2", 1], ["q2", "d1", 1]], columns=["qid", "docno", "label"]),
        ["recip_rank"],
        names=["first stage", "reranked"],
    )
    assert table.set_index("name")["recip_rank"].to_dict() == {"first stage": 0.75, "reranked": 1.0}


def test_no_rows_stay_no_rows(reranker: Reranker, results: Any):
    found = adapters.RankrtReRanker(reranker)(results.iloc[:0])
    assert len(found) == 0
    assert {"score", "rank"} <= set(found.columns)


@pytest.mark.parametrize("missing", [None, float("nan"), 3])
def test_a_row_without_text_is_named(reranker: Reranker, results: Any, missing: Any):
    results["text"] = results["text"].astype(object)
    results.loc[7, "text"] = missing
    with pytest.raises(InputError, match=r"text of qid 'q1', docno 'd2' is .*, not text; get the texts with pt\.text"):
        adapters.RankrtReRanker(reranker)(results)


def test_a_frame_without_texts_is_refused_as_pyterrier_does(reranker: Reranker, results: Any):
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        adapters.RankrtReRanker(reranker)(results.drop(columns="text"))
