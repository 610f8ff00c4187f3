"""Pairs in columns: batches as the engines give them, and what cannot be scored."""

import pickle
from typing import Any

import numpy as np
import pytest

from rankrt import InputError, Reranker
from rankrt.integrations.columns import PairColumns

ROWS = {"id": [1, 2, 3], "query": ["one", "one", "two"], "passage": ["two", "four", "zero"]}
SCORES = [3.0, 5.0, 2.0]


def test_a_dict_of_arrays_gets_the_scores_as_one_more_array(reranker: Reranker):
    batch = {name: np.array(values, dtype=object) for name, values in ROWS.items()}
    found = PairColumns().added(reranker, batch)
    assert list(found) == ["id", "query", "passage", "score"]
    assert (found["score"].tolist(), found["score"].dtype) == (SCORES, np.float32)
    assert "score" not in batch, "the batch that was given stays as it is"


def test_a_frame_of_pandas_keeps_its_index(reranker: Reranker):
    pd: Any = pytest.importorskip("pandas", reason="pandas is not installed")
    found = PairColumns(score_column="relevance").added(reranker, pd.DataFrame(ROWS, index=[7, 8, 9]))
    assert found["relevance"].to_dict() == dict(zip([7, 8, 9], SCORES, strict=True))
    assert found["relevance"].dtype == np.float32


def test_a_table_of_arrow_keeps_its_types(reranker: Reranker):
    pa: Any = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = pa.table(ROWS, schema=pa.schema([("id", pa.int8()), ("query", pa.string()), ("passage", pa.string())]))
    found = PairColumns().added(reranker, table)
    assert found.schema.names == ["id", "query", "passage", "score"]
    assert (found.schema.field("id").type, found.schema.field("score").type) == (pa.int8(), pa.float32())
    assert found["score"].to_pylist() == SCORES


def test_no_rows_stay_no_rows(reranker: Reranker):
    found = PairColumns().added(reranker, {"query": np.array([], object), "passage": np.array([], object)})
    assert found["score"].shape == (0,)


def test_scores_may_be_the_sigmoid(reranker: Reranker):
    found = PairColumns(normalize=True).scores(reranker, ["one"], ["two"])
    assert found.tobytes() == reranker.score([("one", "two")], normalize=True).tobytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"passage_column": "text"}, "no column 'text'; the columns are 'id', 'query', 'passage'.*with passage_column"),
        ({"query_column": "q"}, "no column 'q'; .* with query_column"),
        ({"score_column": "id"}, "there is a column 'id' already; name another with score_column"),
    ],
)
def test_columns_that_do_not_fit_are_named_with_those_that_are_there(
    reranker: Reranker, options: dict[str, str], said: str
):
    with pytest.raises(InputError, match=said):
        PairColumns(**options).added(reranker, ROWS)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", [None, float("nan"), 3])
def test_a_row_without_text_is_named(reranker: Reranker, missing: object):
    with pytest.raises(InputError, match=r"column .passage. holds .* in row 1 of a batch, not text; drop such rows"):
        PairColumns().added(reranker, {**ROWS, "passage": ["two", missing, "zero"]})


@pytest.mark.parametrize(
    "options", [{"query_column": 3}, {"query_column": "score"}, {"normalize": "yes"}, {"calibrated": 1}]
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]):
    with pytest.raises(InputError, match="expected"):
        PairColumns(**options)


def test_it_travels():
    columns = PairColumns(query_column="q", normalize=True)
    assert pickle.loads(pickle.dumps(columns)) == columns
