"""The shape of the layers of a causal model in one graph."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentShape:
    """A segment of a causal model: its input (ids or states), its layers, and its heads of keys and values.

    scale  what the products of queries and keys are multiplied with
    cap    what bounds them after that, as cap * tanh(product / cap); None if nothing does
    """

    is_first: bool
    n_layers: int
    n_features: int
    n_kv_heads: int
    head_size: int
    scale: float
    cap: float | None = None
