"""Spark over rankrt, in local mode: two tasks at a time, in Python workers."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from rankrt import InputError, Reranker
from rankrt.artifact.manifest import Artifact
from tests.scale.conftest import WORDS, spark_session
from tests.support import tiny_artifact

pytest.importorskip("pyspark", reason="pyspark is not installed")
pytest.importorskip("pandas", reason="pandas is not installed")
spark: Any = pytest.importorskip("rankrt.integrations.spark")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_artifact(tmp_path_factory.mktemp("spark") / "tiny").folder)


def frame_of(session: Any, n: int = 200) -> Any:
    rows = [(i, "one", " ".join([WORDS[i % 5]] * (1 + i % 9))) for i in range(n)]
    return session.createDataFrame(rows, ["id", "query", "passage"]).repartition(4)


def expected_of(folder: str, rows: Any) -> list[float]:
    with Reranker.load(folder) as reranker:
        scores: list[float] = reranker.score([(row.query, row.passage) for row in rows]).tolist()
    return scores


def test_a_frame_gets_the_scores_of_one_process(session: Any, folder: str):
    scored = spark.RankrtScorer(folder).transform(frame_of(session))
    assert scored.columns == ["id", "query", "passage", "score"]
    rows = scored.orderBy("id").collect()
    assert [row.score for row in rows] == expected_of(folder, rows)


def test_predict_batch_udf_gives_the_same(session: Any, folder: str):
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import FloatType

    score = predict_batch_udf(spark.RankrtScorer(folder).make_predict_fn, return_type=FloatType(), batch_size=32)
    rows = frame_of(session).withColumn("score", score("query", "passage")).orderBy("id").collect()
    assert [row.score for row in rows] == expected_of(folder, rows)


def test_a_worker_that_dies_loses_nothing(session: Any, folder: str, tmp_path: Path):
    """The first task of a partition ends its worker in the middle; Spark gives the partition to another one."""
    scorer, mark = spark.RankrtScorer(folder), str(tmp_path / "died")
    score = scorer.score_batches()

    def dying(batches: Any) -> Any:
        import os

        for batch in score(batches):
            if 3 in batch["id"].values and not os.path.exists(mark):
                open(mark, "w").close()
                os._exit(1)
            yield batch

    frame = frame_of(session)
    rows = frame.mapInPandas(dying, schema=scorer.schema(frame.schema)).orderBy("id").collect()
    assert Path(mark).exists()
    assert [row.score for row in rows] == expected_of(folder, rows)


def test_columns_that_do_not_fit_are_refused_before_a_task_starts(session: Any, folder: str):
    frame = frame_of(session, 4)
    with pytest.raises(InputError, match="there is no column 'text'; the columns are 'id', 'query', 'passage'"):
        spark.RankrtScorer(folder, passage_column="text").transform(frame)
    with pytest.raises(InputError, match="column 'id' holds bigint, expected string"):
        spark.RankrtScorer(folder, query_column="id").transform(frame)


def test_an_executor_without_the_artifact_names_the_path(session: Any):
    with pytest.raises(Exception, match=r"ArtifactError: /nowhere does not exist"):
        spark.RankrtScorer("/nowhere").transform(frame_of(session, 4)).collect()


def test_a_loaded_reranker_is_not_sent(reranker: Reranker):
    with pytest.raises(InputError, match="Spark's workers load it, so give its folder or hub id"):
        spark.RankrtScorer(reranker)


def test_it_holds_no_model(artifact: Artifact):
    assert len(pickle.dumps(spark.RankrtScorer(str(artifact.folder)))) < 1000


def test_an_executor_without_rankrt_says_what_to_install(
    session: Any, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A package that fails to import stands before the real one on the workers' path."""
    session.stop()
    (tmp_path / "rankrt").mkdir()
    (tmp_path / "rankrt" / "__init__.py").write_text("raise ModuleNotFoundError('No module named \\'rankrt\\'')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    without = spark_session(**{"spark.executorEnv.PYTHONPATH": str(tmp_path)})
    try:
        said = (
            r"the executor on .* cannot import rankrt: No module named 'rankrt'. Install 'rankrt\[cpu,spark\]' for its"
        )
        with pytest.raises(Exception, match=said):
            spark.RankrtScorer(folder).transform(frame_of(without, 4)).collect()
    finally:
        without.stop()
