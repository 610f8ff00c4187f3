"""A reranker as mteb takes cross-encoders, for its two-stage reranking. It imports neither mteb nor torch by itself."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rankrt import Reranker, __version__
from rankrt.arrays import Float32Array

# Pairs that are scored in one call, so that memory holds the texts of so many.
_BLOCK_PAIRS = 4096


class MtebReranker:
    """A loaded reranker for `mteb.evaluate`: it has what mteb's CrossEncoderProtocol asks for."""

    def __init__(self, reranker: Reranker, *, name: str | None = None) -> None:
        """Take a reranker. `name` is the model's in mteb's results, owner/name; by default rankrt/NAME-VARIANT."""
        from mteb.models import ModelMeta

        manifest, variant = reranker.artifact.manifest, reranker.variant
        self._reranker = reranker
        self.mteb_model_meta: Any = ModelMeta.create_empty(
            overwrites={
                "name": name or f"rankrt/{manifest.name}-{variant.name}",
                "revision": f"{reranker.artifact.identity[:16]}-rankrt-{__version__}",
                "max_tokens": reranker.rules.max_length,
                "model_type": ["cross-encoder"],
            }
        )

    def predict(
        self,
        inputs1: Iterable[Mapping[str, Any]],
        inputs2: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **encode_kwargs: Any,
    ) -> Float32Array:
        """Return the logits of pairs, (n_pairs,): queries from batches of `inputs1`, documents from those of `inputs2`.

        A batch has its texts under "text". The other arguments are mteb's, and change nothing: the reranker's rules
        say how texts are cut and joined, and it chooses its batches itself.
        """
        found: list[Float32Array] = []
        pairs: list[tuple[str, str]] = []
        for pair in zip(_texts(inputs1), _texts(inputs2), strict=True):
            pairs.append(pair)
            if len(pairs) == _BLOCK_PAIRS:
                found.append(self._reranker.evaluate(pairs).logits)
                pairs = []
        return np.concatenate([*found, self._reranker.evaluate(pairs).logits])


def _texts(batches: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for batch in batches:
        yield from batch["text"]
