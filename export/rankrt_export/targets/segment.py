"""The shape of the layers of a causal model in one graph."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentShape:
    """A segment of a causal model: its input (ids or states), its layers, and its heads of keys and values."""

    is_first: bool
    n_layers: int
    n_features: int
    n_kv_heads: int
    head_size: int
