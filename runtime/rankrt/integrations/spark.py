"""Spark over rankrt: scores as a column of a DataFrame, by a model that each Python worker loads once."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from typing import Any

from rankrt.errors import InputError
from rankrt.integrations.columns import PairColumns
from rankrt.integrations.frameworks import framework
from rankrt.reranker import Reranker

with framework("pyspark", least="4.0", extra="spark"):
    from pyspark import TaskContext
    from pyspark.sql import DataFrame
    from pyspark.sql.types import FloatType, StringType, StructType


class RankrtScorer:
    """Adds the score of each row's query and passage. It holds names and options; the workers load the model."""

    def __init__(
        self,
        model: str,
        *,
        query_column: str = "query",
        passage_column: str = "passage",
        score_column: str = "score",
        normalize: bool = False,
        calibrated: bool = False,
        **load_options: Any,
    ) -> None:
        """Note what is loaded later.

        model         a folder that each executor has, or a hub id
        normalize, calibrated  as in `Reranker.score`
        load_options  those of `Reranker.load`. By default a worker has as many threads as its task has CPUs, and no GPU
        """
        if isinstance(model, Reranker):
            raise InputError("model is a loaded Reranker; Spark's workers load it, so give its folder or hub id")
        self.model = model
        self.load_options = load_options
        self.columns = PairColumns(
            query_column=query_column,
            passage_column=passage_column,
            score_column=score_column,
            normalize=normalize,
            calibrated=calibrated,
        )

    def transform(self, frame: DataFrame) -> DataFrame:
        """Return the frame with the column of scores, computed by `mapInPandas` when Spark needs it.

        Raises InputError for a column that is missing or holds no text.
        """
        return frame.mapInPandas(self.score_batches(), schema=self.schema(frame.schema))

    def schema(self, schema: StructType) -> StructType:
        """Return the columns of a scored frame. Raises InputError as `transform`."""
        self.columns.check(schema.fieldNames())
        for name in (self.columns.query_column, self.columns.passage_column):
            if not isinstance(schema[name].dataType, StringType):
                raise InputError(f"column {name!r} holds {schema[name].dataType.simpleString()}, expected string")
        return StructType([*schema.fields]).add(self.columns.score_column, FloatType())

    def score_batches(self) -> Callable[[Iterator[Any]], Iterator[Any]]:
        """Return a function for `DataFrame.mapInPandas`, which adds the scores to frames of pandas."""
        model, columns, load_options = self.model, asdict(self.columns), dict(self.load_options)

        # A function inside a function is sent whole, so it runs on an executor that cannot import rankrt, and says so.
        def score(batches: Iterator[Any]) -> Iterator[Any]:
            try:
                from rankrt.integrations import spark
            except ImportError as error:
                import platform
                import sys

                raise RuntimeError(
                    f"the executor on {platform.node()} cannot import rankrt: {error}. Install 'rankrt[cpu,spark]' for"
                    f" its Python, {sys.executable}"
                ) from error
            scorer = spark.RankrtScorer(model, **columns, **load_options)
            reranker = scorer.loaded()
            for batch in batches:
                yield scorer.columns.added(reranker, batch)

        return score

    def make_predict_fn(self) -> Callable[[Any, Any], Any]:
        """Return a function of two arrays of texts, queries and passages, that returns their scores.

        `predict_batch_udf(scorer.make_predict_fn, return_type=FloatType(), batch_size=256)` calls this in the workers.
        """
        reranker = self.loaded()
        return lambda queries, passages: self.columns.scores(reranker, queries, passages)

    def loaded(self) -> Reranker:
        """Return the model, which a Python worker loads once for all of its tasks."""
        task, options = TaskContext.get(), {"device": "cpu"} | self.load_options
        if task is not None and options["device"] == "cpu":
            options = {"n_threads": task.cpus()} | options
        return _loaded(self.model, **options)


@cache
def _loaded(model: str, **load_options: Any) -> Reranker:
    return Reranker.load(model, **load_options)
