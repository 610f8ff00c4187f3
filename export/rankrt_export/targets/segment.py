"""What a target has to know of the layers of a causal model that one graph computes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentShape:
    """A segment of a causal model: whether ids come in or states, its layers, and its heads of keys and values."""

    is_first: bool
    n_layers: int
    n_features: int
    n_kv_heads: int
    head_size: int
