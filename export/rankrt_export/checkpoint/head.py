"""The head of an encoder: what makes a score of the states of a row, as values. Knows no graph and no file format.

A classifier's own head is one, and so is a chain of modules that sentence-transformers puts after a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rankrt.arrays import Float32Array

Pooling: TypeAlias = Literal["cls", "mean"]
Activation: TypeAlias = Literal["gelu", "identity", "relu", "silu", "tanh"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dense:
    """A linear layer and what follows it: weight (n_out, n_in), bias (n_out,) or None."""

    weight: Float32Array
    bias: Float32Array | None = None
    activation: Activation = "identity"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norm:
    """A layer norm: scale and bias, (n_features,) each; no bias is one of zeros."""

    scale: Float32Array
    bias: Float32Array | None = None
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """How the states of a row become its score.

    pooling  "cls" takes the first token's states, "mean" the mean of all
    layers   are applied one after another; the last one has one output
    """

    pooling: Pooling
    layers: Sequence[Dense | Norm]
