"""FlagEmbedding's lightweight reranker, which runs by transformers 4.47 and older alone, made to run by newer ones."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from tests.export.conftest import torch


def lightweight(folder: Path, **options: Any) -> Any:
    """Return FlagEmbedding's reranker.

    Since transformers 4.48 a layer takes its rotations and its window from the model. FlagEmbedding's model, of which
    nothing is changed, does not give them. They are given to transformers' layers here, as transformers' own Gemma 2
    gives them.
    """
    decoder_only = pytest.importorskip(
        "FlagEmbedding.inference.reranker.decoder_only", reason="needs FlagEmbedding 1.4.2 (it pins transformers)"
    )
    from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer, Gemma2RotaryEmbedding

    reranker = decoder_only.LightWeightFlagLLMReranker(str(folder), devices="cpu", **{"batch_size": 3} | options)
    model = reranker.model
    assert model.config._attn_implementation == "sdpa", "as with transformers 4.46: attention without bounds"
    if "position_embeddings" in inspect.signature(inspect.unwrap(Gemma2DecoderLayer.forward)).parameters:
        rotary, window = Gemma2RotaryEmbedding(config=model.config), model.config.sliding_window

        def supply(layer: Any, arguments: Any, options: dict[str, Any]) -> Any:
            mask = options["attention_mask"]
            if layer.attention_type == "sliding_attention":
                beyond = torch.ones_like(mask, dtype=torch.bool).tril(diagonal=-window)
                mask = torch.where(beyond, torch.finfo(mask.dtype).min, mask)
            turned = rotary(arguments[0], options["position_ids"])
            return arguments, options | {"attention_mask": mask, "position_embeddings": turned}

        for layer in model.model.layers:
            layer.register_forward_pre_hook(supply, with_kwargs=True)
    return reranker


def rows_given_to(reranker: Any) -> set[tuple[int, ...]]:
    """Return the rows of ids that FlagEmbedding's model gets from now on."""
    rows: set[tuple[int, ...]] = set()
    forward = reranker.model.forward

    def record(**inputs: Any) -> Any:
        for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
            rows.add(tuple(id_ for id_, is_token in zip(ids, mask, strict=True) if is_token))
        return forward(**inputs)

    reranker.model.forward = record
    return rows
