"""A classifier with two labels as a reranker: a score is one label's logit less the other's.

The last layer of a head is linear, so the difference of its two rows is the head of such a reranker.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from rankrt.arrays import Float32Array
from rankrt_export.checkpoint.fields import Fields
from rankrt_export.checkpoint.weights import Weights
from rankrt_export.errors import CheckpointError

# The last layers of classifiers' heads.
HEADS = ("classifier.out_proj", "classifier", "score")


def labels_of(config: Fields) -> list[str]:
    """Return the names of a classifier's labels, in their order. Where nothing is said transformers makes two."""
    named = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    n_labels = config.get("num_labels", len(named) or 2)
    return [named.get(number, f"LABEL_{number}") for number in range(int(n_labels))]


def with_label(config: Fields, label: str, source: str) -> tuple[Fields, tuple[str, str], int]:
    """Return the configuration of a reranker whose score is a label's, that label and the other one, and its number.

    Raises CheckpointError unless it is a classifier with two labels, one of that name.
    """
    if not (kind := str(config["architectures"][0])).endswith("ForSequenceClassification"):
        raise CheckpointError(f"--label {label} is for classifiers; {source} is a {kind}. Leave it out")
    labels = labels_of(config)
    if len(labels) != 2 or label not in labels:
        described = ", ".join(map(repr, labels[:5])) + ", ..." * (len(labels) > 5)
        raise CheckpointError(
            f"--label {label}: {source} has {len(labels)} label{'s' * (len(labels) != 1)} ({described}). The option is"
            " for classifiers with two, and names one of them"
        )
    changed: dict[str, Any] = {"num_labels": 1, "id2label": {"0": label}, "label2id": {label: 0}}
    number = labels.index(label)
    return Fields(config.path, {**config, **changed}), (label, labels[1 - number]), number


class LabelWeights:
    """The tensors of a classifier with two labels, with one row in its head: a label's less the other's."""

    def __init__(self, stored: Weights, number: int) -> None:
        """Take a classifier's tensors and the number of its label. Raises CheckpointError for a head of other rows."""
        for name in sorted({f"{head}.weight" for head in HEADS} & stored.names):
            if (n_rows := stored.shape(name)[0]) != 2:
                raise CheckpointError(
                    f"{stored.files[0].parent} has {n_rows} rows in {name}, and config.json says that there are 2"
                    " labels: they do not belong together"
                )
        self._stored = stored
        self._number = number
        self.files, self.names = stored.files, stored.names
        self._heads = {f"{name}.{part}" for name in HEADS for part in ("weight", "bias")} & self.names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        shape = self._stored.shape(name)
        return (1, *shape[1:]) if name in self._heads else shape

    def part(self, name: str, rows: slice) -> Float32Array:
        """Return some rows of a tensor."""
        if name not in self._heads:
            return self._stored.part(name, rows)
        pair = self._stored.part(name, slice(None))
        difference: Float32Array = pair[self._number] - pair[1 - self._number]
        return np.asarray(difference[None][rows], np.float32)

    def blocks(self, name: str) -> Iterator[Float32Array]:
        """Yield a tensor in blocks of its first axis."""
        if name in self._heads:
            yield self.part(name, slice(None))
        else:
            yield from self._stored.blocks(name)
