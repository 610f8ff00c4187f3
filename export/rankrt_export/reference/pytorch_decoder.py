"""The PyTorch model of a decoder, one layer at a time: a reference for models that do not fit into memory.

transformers' own modules compute; here they are only given their weights, a layer's for all rows, then the next one's.
Rows run alone and without padding. MiniCPM, which transformers does not have, is computed by its Granite class, whose
multipliers for embeddings, residuals and attention are all that MiniCPM adds to Llama. FlagEmbedding's lightweight
Gemma 2 is computed by transformers' Gemma 2 without bounds on attention, and passages are compressed between layers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from rankrt.arrays import Float32Array
from rankrt.text.pairs import Pair
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.fields import token_of
from rankrt_export.checkpoint.weights import read
from rankrt_export.decoders.styles import Style
from rankrt_export.errors import CheckpointError
from rankrt_export.graph.blueprint import Readout
from rankrt_export.reference.pytorch import Row, config_of, first_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How a decoder is asked, and where its answer is read."""

    style: Style
    readout: Readout

    def rows(self, checkpoint: Checkpoint, pairs: Sequence[Pair], max_length: int) -> list[Row]:
        """Return the rows that the model takes."""
        return [{"input_ids": row.ids} for row in asked_rows(checkpoint, self.style, pairs, max_length)]

    def model(self, checkpoint: Checkpoint) -> Any:
        """Return the PyTorch model."""
        return whole_decoder(checkpoint, self.readout)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedRow:
    """The ids of a row, and where in it the passage is; None if the row was tokenized as one text."""

    ids: list[int]
    passage: slice | None = None


def asked_rows(checkpoint: Checkpoint, style: Style, pairs: Sequence[Pair], max_length: int) -> list[AskedRow]:
    """Return the rows that the checkpoint's own tokenizer makes of pairs, put together as the style's authors do."""
    tokenizer = _tokenizer(checkpoint)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    joined = _joint_row if style.is_joint else _row_of_pieces
    return [joined(ids, tokenizer.bos_token_id, tokenizer.pad_token_id, style, pair, max_length) for pair in pairs]


def _tokenizer(checkpoint: Checkpoint) -> Any:
    """Return transformers' tokenizer, made of tokenizer.json as it is.

    For a "LlamaTokenizer" transformers 5.23 would build another one than the file describes: of 1,200 paragraphs 839
    got other ids from MiniCPM's than with 4.57, which the rerankers are used with.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not (file := checkpoint.folder / "tokenizer.json").exists():
        return AutoTokenizer.from_pretrained(checkpoint.folder)
    special = {key: token_of(checkpoint.tokenizer_config, key) for key in ("bos_token", "pad_token")}
    return PreTrainedTokenizerFast(tokenizer_file=str(file), **special)


def _row_of_pieces(
    ids: Callable[[str], list[int]], bos: int | None, pad: int | None, style: Style, pair: Pair, max_length: int
) -> AskedRow:
    """As FlagEmbedding 1.4.2 and mxbai-rerank 0.1.6: query and passage cut apart, then the passage to what is left.

    Both do not count all of the words around the texts. FlagEmbedding's rows are longer than max_length, by as many
    tokens as its question has; a row of other words is cut to max_length.
    """
    separator, suffix = ids(style.separator), [id_ for text in style.suffix for id_ in ids(text)]
    first = [] if not style.begins or bos is None or bos == pad else [bos]
    first += ids(style.prefix) + ids(style.query_form.around(pair[0]))[: max_length * 3 // 4]
    second = separator + ids(style.passage_form.around(pair[1]))[:max_length]
    beyond = len(suffix) if style.prompt.question is not None else -len(suffix)
    row = first + second[: max_length + beyond - len(first)]
    return AskedRow(ids=row + suffix, passage=slice(len(first) + len(separator), len(row)))


def _joint_row(
    ids: Callable[[str], list[int]], bos: int | None, pad: int | None, style: Style, pair: Pair, max_length: int
) -> AskedRow:
    """As sentence-transformers and the model cards: a row is one text. Of a long one query and passage are cut.

    What follows a text that was cut is kept, as sentence-transformers keeps the end of a chat template.
    """
    whole, query = ids(style.text(pair)), style.query_form.around(pair[0])
    if len(whole) <= max_length and len(ids(query)) <= max_length * 3 // 4:
        return AskedRow(ids=whole)
    texts = [_cut(ids, query, style.query_form.words_after, max_length * 3 // 4)]
    prefix, suffix = ids(style.prefix), ids("".join(style.suffix))
    room = max_length - len(prefix) - len(ids(style.separator)) - len(suffix) - len(texts[0])
    texts.append(_cut(ids, style.passage_form.around(pair[1]), style.passage_form.words_after, room))
    first, second = texts[:: -1 if style.passage_first else 1]
    return AskedRow(ids=prefix + first + ids(style.separator) + second + suffix)


def _cut(ids: Callable[[str], list[int]], text: str, words_after: str, room: int) -> list[int]:
    whole, end = ids(text), ids(words_after)
    return whole if len(whole) <= room else whole[: room - len(end)] + end


def decoder_logits(
    checkpoint: Checkpoint,
    readouts: Sequence[Readout],
    ratios: Mapping[int, int],
    rows: Sequence[AskedRow],
    progress: Callable[[int], None],
) -> Float32Array:
    """Return the model's logits at each readout, (n_readouts, n_rows); `progress` is told of each row done.

    `ratios` are those by which passages are compressed, by layer.
    """
    import torch

    model, windows = _model(checkpoint, n_layers=1, n_pieces=1), _windows(checkpoint)
    at_layers = {readout.layer: readout for readout in readouts}
    _load(model.norm, checkpoint, "model.norm")
    logits, passages = [], [row.passage for row in rows]
    with torch.inference_mode():
        states = _embedded(checkpoint, [row.ids for row in rows])
        for layer in range(max(at_layers)):
            _load(model.layers[0], checkpoint, f"model.layers.{layer}")
            states = [_through(model, hidden, windows[layer]) for hidden in states]
            if (readout := at_layers.get(layer + 1)) is not None:
                logits.append([float(_logit(model.norm(hidden[0, -1]), readout)) for hidden in states])
            if (ratio := ratios.get(layer + 1)) is not None:
                shorter = [_compressed(*row, ratio) for row in zip(states, passages, strict=True)]
                states, passages = [hidden for hidden, _ in shorter], [passage for _, passage in shorter]
    progress(len(rows))
    return np.array(logits, np.float32)


def _logit(state: Any, readout: Readout) -> Any:
    """Return the logit of states, (..., n_features), as a readout says."""
    import torch

    logits = []
    for vector in (readout.vector, readout.subtracted):
        if vector is not None:
            logit = state @ torch.from_numpy(vector)
            logits.append(logit if readout.cap is None else torch.tanh(logit / readout.cap) * readout.cap)
    return logits[0] - logits[1] if len(logits) > 1 else logits[0]


def _compressed(hidden: Any, passage: slice | None, ratio: int) -> tuple[Any, slice]:
    """Return the states of a row, (1, n_tokens, n_features), with means in its passage, and where that is then."""
    import torch

    assert passage is not None, "a model that compresses is asked in pieces"
    means = [part.mean(dim=1, keepdim=True) for part in hidden[:, passage].split(ratio, dim=1) if part.shape[1]]
    row = torch.cat([hidden[:, : passage.start], *means, hidden[:, passage.stop :]], dim=1)
    return row, slice(passage.start, passage.start + len(means))


def whole_decoder(checkpoint: Checkpoint, readout: Readout) -> Any:
    """Return the PyTorch model with all its layers in memory, whose `logits`, (n_rows, 1), are those of a readout."""
    import torch

    class Scorer(torch.nn.Module):  # type: ignore[misc]  # torch is untyped to mypy here
        def __init__(self) -> None:
            super().__init__()
            self.model = _model(
                checkpoint, n_layers=readout.layer, n_pieces=checkpoint.weights.shape("model.embed_tokens.weight")[0]
            )

        def forward(self, input_ids: Any) -> Any:
            states = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
            return SimpleNamespace(logits=_logit(states[:, -1:], readout))

    scorer = Scorer()
    _load(scorer.model, checkpoint, "model")
    return scorer.eval()


def _model(checkpoint: Checkpoint, *, n_layers: int, n_pieces: int) -> Any:
    """Return transformers' model of the checkpoint without head or weights, with so many layers and pieces."""
    import torch
    from transformers import AutoModel

    kind = checkpoint.config["model_type"]
    config = _OWN_CONFIGS[kind](checkpoint) if kind in _OWN_CONFIGS else None
    try:
        config = config or config_of(checkpoint)
        if getattr(config, "hidden_act", "") == "gelu" and config.model_type == "gemma":
            config.hidden_act = "gelu_pytorch_tanh"  # what it means; see architectures/decoder.py
        config.num_hidden_layers, config.vocab_size, config.pad_token_id = n_layers, n_pieces, None
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:n_layers]
        # PyTorch's own attention has no bounds, which Gemma 2 has.
        attention = "eager" if config.model_type == "gemma2" else "sdpa"
        return AutoModel.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()
    except Exception as error:
        raise CheckpointError(
            f"transformers cannot make a model of {checkpoint.folder}: {first_line(error)}"
        ) from error


def _granite_config(checkpoint: Checkpoint) -> Any:
    from transformers import GraniteConfig

    config = checkpoint.config
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps")
    head_size = int(config["hidden_size"]) // int(config["num_attention_heads"])
    return GraniteConfig(
        **{name: config[name] for name in names},
        rope_theta=config.get("rope_theta", 10000.0),
        max_position_embeddings=checkpoint.max_length,
        embedding_multiplier=config.get("scale_emb", 1.0),
        residual_multiplier=config.get("scale_depth", 1.0) / config["num_hidden_layers"] ** 0.5,
        attention_multiplier=head_size**-0.5,
    )


def _gemma2_config(checkpoint: Checkpoint) -> Any:
    """Return the configuration of FlagEmbedding's Gemma 2, whose attention is PyTorch's and so has no bounds."""
    from transformers import Gemma2Config

    own = ("architectures", "model_type", "auto_map", "start_layer", "layer_sep", "layer_wise")
    given = {name: value for name, value in checkpoint.config.items() if name not in own}
    return Gemma2Config(**given | {"attn_logit_softcapping": None})


_OWN_CONFIGS: Mapping[str, Callable[[Checkpoint], Any]] = {
    "cost_wise_gemma": _gemma2_config,
    "minicpm": _granite_config,
}


def _windows(checkpoint: Checkpoint) -> Sequence[int | None]:
    """Return how many tokens a token sees in each layer, by transformers' configuration; None for all before it."""
    kind, n_layers = checkpoint.config["model_type"], int(checkpoint.config["num_hidden_layers"])
    if kind not in ("gemma2", "cost_wise_gemma"):
        return [None] * n_layers
    config = _gemma2_config(checkpoint)
    return [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]


def _embedded(checkpoint: Checkpoint, rows: Sequence[Sequence[int]]) -> list[Any]:
    """Return what goes into the first layer, (1, n_tokens, n_features) each, by a model of no layers and few pieces."""
    import torch

    pieces, places = np.unique(np.concatenate([np.asarray(row) for row in rows]), return_inverse=True)
    model = _model(checkpoint, n_layers=0, n_pieces=len(pieces))
    model.norm = torch.nn.Identity()
    model.embed_tokens.weight = torch.nn.Parameter(torch.from_numpy(_table_rows(checkpoint, pieces)))
    ends = np.cumsum([len(row) for row in rows])[:-1]
    return [
        model(input_ids=torch.from_numpy(ids[None]), use_cache=False).last_hidden_state
        for ids in np.split(places.reshape(-1).astype(np.int64), ends)
    ]


def _table_rows(checkpoint: Checkpoint, pieces: np.ndarray[Any, Any]) -> Float32Array:
    """Read some rows of the table of embeddings in one pass over it."""
    found, start = [], 0
    for block in checkpoint.weights.blocks("model.embed_tokens.weight"):
        here = pieces[(pieces >= start) & (pieces < start + len(block))]
        found.append(block[here - start])
        start += len(block)
    return np.concatenate(found)


def _load(module: Any, checkpoint: Checkpoint, name: str) -> None:
    import torch

    state = {}
    for key, expected in module.state_dict().items():
        state[key] = torch.from_numpy(read(checkpoint.weights, f"{name}.{key}"))
        if state[key].shape != expected.shape:
            raise CheckpointError(
                f"{name}.{key} has the shape {tuple(state[key].shape)}, and by config.json it is"
                f" {tuple(expected.shape)}: download the checkpoint again"
            )
    module.load_state_dict(state, assign=True)


def _through(model: Any, hidden: Any, window: int | None) -> Any:
    import torch

    positions = torch.arange(hidden.shape[1])[None]
    turned, mask = model.rotary_emb(hidden, positions), None
    if model.config._attn_implementation == "eager":  # which sees all tokens if it is not given a mask
        distances = positions.T - positions
        is_seen = (distances >= 0) if window is None else (distances >= 0) & (distances < window)
        mask = torch.where(is_seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    found = model.layers[0](
        hidden, attention_mask=mask, position_ids=positions, position_embeddings=turned, use_cache=False
    )
    return found[0] if isinstance(found, tuple) else found
