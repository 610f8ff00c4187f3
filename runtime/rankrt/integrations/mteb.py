"""MTEB's interface over rankrt: a cross encoder for its reranking in two stages.

It has what mteb's CrossEncoderProtocol asks for. Neither mteb nor torch is imported here but for the model's metadata.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from rankrt.arrays import Float32Array
from rankrt.errors import InputError
from rankrt.integrations.frameworks import framework, loaded
from rankrt.reranker import Reranker

# Pairs that are scored in one call, so that memory holds the texts of so many.
_BLOCK_PAIRS = 4096


class MtebReranker:
    """A reranker for `mteb.evaluate`, and a loader for the `ModelMeta` of one."""

    def __init__(
        self,
        model_name: str | Reranker,
        revision: str | None = None,
        device: str | None = None,
        *,
        name: str | None = None,
        **load_options: Any,
    ) -> None:
        """Take a loaded reranker, or load a folder or a hub id, with the options of `Reranker.load`.

        `name` is the model's in mteb's results, owner/name; by default rankrt/NAME-VARIANT.
        """
        options = {**load_options, "revision": revision, "device": device}
        self.reranker = loaded(model_name, {key: value for key, value in options.items() if value is not None})
        self.mteb_model_meta = self._describe(name)

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

        The other arguments are mteb's, and change nothing: the reranker's rules say how texts are cut and joined, and
        it chooses its batches itself.
        """
        found: list[Float32Array] = []
        pairs: list[tuple[str, str]] = []
        for pair in zip(_texts(inputs1), _texts(inputs2), strict=True):
            pairs.append(pair)
            if len(pairs) == _BLOCK_PAIRS:
                found.append(self.reranker.evaluate(pairs).logits)
                pairs = []
        return np.concatenate([*found, self.reranker.evaluate(pairs).logits])

    def _describe(self, name: str | None) -> Any:
        with framework("mteb", least="2.0", extra="mteb"):
            from mteb.models import ModelMeta

        manifest, variant = self.reranker.artifact.manifest, self.reranker.variant
        return ModelMeta.create_empty(
            overwrites={
                "name": name or f"rankrt/{manifest.name}-{variant.name}",
                "revision": self.reranker.artifact.identity[:16],
                "max_tokens": self.reranker.rules.max_length,
                "model_type": ["cross-encoder"],
            }
        )


def _texts(batches: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the texts of batches. Raises InputError for a batch of images or sound alone."""
    for batch in batches:
        if "text" not in batch:
            raise InputError(f"a batch has {', '.join(batch)} and no text, which is all that a reranker here reads")
        for text in batch["text"]:
            if not isinstance(text, str):
                raise InputError(f"a text of a batch is {type(text).__name__}, not str")
            yield text
