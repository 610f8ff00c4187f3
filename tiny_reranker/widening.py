"""A larger network with the function of a small one, as a start for training a larger model.

Every feature, head and inner unit is copied several times. A product that sums over the copies takes their mean.
LayerNorm works as before, because mean and variance stay the same. Added layers pass on their input. Then little noise
lets the copies diverge.
"""

from copy import deepcopy
from typing import Any

import torch
from transformers import XLMRobertaForSequenceClassification

# Relative to the deviation of each weight.
_NOISE = 0.02


def widen(model: Any, *, n_copies: int, n_layers: int, seed: int = 0) -> Any:
    """Return a model with n_copies times the features, heads and inner units, and n_layers layers.

    The layers of `model`, whose norms have to be those of an untrained model (scale 1, no shift), are spread evenly.
    """
    torch.manual_seed(seed)
    config = deepcopy(model.config)
    for name in ("hidden_size", "num_attention_heads", "intermediate_size"):
        setattr(config, name, getattr(config, name) * n_copies)
    config.num_hidden_layers = n_layers
    wide = XLMRobertaForSequenceClassification(config).eval()
    step = n_layers // model.config.num_hidden_layers
    with torch.no_grad():
        small = dict(model.named_parameters())
        for name, weight in wide.named_parameters():
            layer, rest = _layer_of(name)
            if layer is not None and (layer % step or layer // step >= model.config.num_hidden_layers):
                _pass_on(rest, weight)
            else:
                source = small[name if layer is None else f"roberta.encoder.layer.{layer // step}.{rest}"]
                weight.copy_(_tile(source, weight.shape, sums_over_copies="embeddings" not in name))
            if weight.ndim == 2:
                weight.add_(torch.randn_like(weight) * weight.std() * _NOISE)
    return wide


def _layer_of(name: str) -> tuple[int | None, str]:
    prefix = "roberta.encoder.layer."
    if not name.startswith(prefix):
        return None, name
    number, rest = name.removeprefix(prefix).split(".", 1)
    return int(number), rest


def _tile(source: torch.Tensor, shape: torch.Size, *, sums_over_copies: bool) -> torch.Tensor:
    """Repeat a tensor to fill a shape. If a product sums over the copies of an input, each copy gets its share."""
    n_times = [wanted // given for wanted, given in zip(shape, source.shape, strict=True)]
    return source.repeat(*n_times) / (n_times[-1] if source.ndim == 2 and sums_over_copies else 1)


def _pass_on(name: str, weight: torch.Tensor) -> None:
    """Set a weight of a layer that adds nothing to its input."""
    if "LayerNorm" in name:
        weight.fill_(1.0 if name.endswith("weight") else 0.0)
    elif "output.dense" in name or weight.ndim == 1:
        weight.zero_()
    else:
        weight.normal_(0, 0.02)
