"""rankrt with LLM rerankers: rows cut as in FlagEmbedding, scores read after the last layer."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import ClassVar

from rankrt import Reranker
from rankrt.artifact.precisions import Precision
from rankrt.loading.open import open_model, rules_for
from rankrt.options import LoadOptions


class Float32:
    """The fp32 variant of an artifact, the query's part computed once a call."""

    precision: ClassVar[Precision] = "fp32"
    shares_prefix: ClassVar[bool] = True

    def __init__(self, model: str, n_threads: int) -> None:
        options = LoadOptions(precision=self.precision, n_threads=n_threads)
        opened = open_model(model, options, shares_prefixes=self.shares_prefix)
        self._reranker = Reranker(opened, rules_for(opened.placement.artifact, {}))
        self.versions = {name: version(name) for name in ("rankrt", "onnxruntime", "numpy", "tokenizers")}

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        reranker = self._reranker.with_rules(max_length=max_length)
        scores: list[float] = reranker.score([(query, passage) for passage in passages]).tolist()
        return scores


class Unshared(Float32):
    """The query's part computed for every passage."""

    shares_prefix = False


class Weights8(Float32):
    """Weights in 8 bits."""

    precision = "w8"


class Int8(Float32):
    """Linear layers in int8, except those that cost too much."""

    precision = "int8"


class Int4(Float32):
    """Weights in 4 bits."""

    precision = "int4"
