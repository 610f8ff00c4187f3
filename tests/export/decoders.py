"""Tiny decoders of every family in the real file layout, with random weights and a tokenizer of single bytes."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rankrt_export.decoders.styles import STYLES
from rankrt_export.text.texts import sample
from tests.export.conftest import torch, transformers

ANSWERS = ("Yes", "yes", "no")
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MARKS = ("<s>", "<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
# Windows of 40 tokens, so that rows of a test are longer; caps that bite on random weights.
GEMMA2: dict[str, Any] = {
    "num_hidden_layers": 6,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 24,
    "sliding_window": 40,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Gemma": {"num_key_value_heads": 1, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    "Gemma2": GEMMA2 | {"tie_word_embeddings": True},
    "Llama": {"tie_word_embeddings": False},
    "Mistral": {"sliding_window": None, "tie_word_embeddings": False},
    "Qwen2": {"head_dim": 12, "tie_word_embeddings": True},
    "Qwen3": {"tie_word_embeddings": True},
}
LAYERWISE: dict[str, Any] = {
    "architectures": ["LayerWiseMiniCPMForCausalLM"],
    "model_type": "minicpm",
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "vocab_size": 320,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "start_layer": 2,
    "head_multi": True,
    "head_type": "simple",
}


def make_decoder(folder: Path, family: str, dtype: str = "float32", **changes: Any) -> Path:
    """Write a checkpoint of a family's ...ForCausalLM, whose chat template says how it is asked."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SHAPE | FAMILIES[family] | changes))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    _spread(model)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    write_tokenizer(folder)
    write_chat_template(folder, "qwen3-reranker" if family == "Qwen3" else "flagembedding")
    return folder


def write_chat_template(folder: Path, style: str) -> None:
    """Write the template by which sentence-transformers asks as a style does."""
    query, passage = (f"{{{{ {text_of(role)} }}}}" for role in ("query", "document"))
    template = STYLES[style].text((query, passage), "{{ bos_token }}")
    # jinja takes one line's end from the end of a template
    (folder / "chat_template.jinja").write_text(template + "\n" * template.endswith("\n"))


def text_of(role: str) -> str:
    """Return the expression for the text of a role."""
    return f'messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first'


def make_layerwise(folder: Path, **changes: Any) -> Path:
    """Write a layerwise MiniCPM: its tensors have Llama's names, and a head for each layer from the start layer on."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = LAYERWISE | changes
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    model = transformers.LlamaModel(transformers.LlamaConfig(**{name: config[name] for name in names}))
    _spread(model)
    tensors = {f"model.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    for head in range(config["num_hidden_layers"] - config["start_layer"] + 1):
        tensors[f"lm_head.{head}.linear_head.weight"] = torch.randn(1, config["hidden_size"])
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def make_lightweight(folder: Path, **changes: Any) -> Path:
    """Write a CostWiseGemma, FlagEmbedding's Gemma 2 with a head for each layer from the start layer on."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = SHAPE | GEMMA2 | {"start_layer": 2, "layer_sep": 1, "layer_wise": True} | changes
    model = transformers.Gemma2Model(transformers.Gemma2Config(**(SHAPE | GEMMA2 | changes)))
    _spread(model)
    tensors = {f"model.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    for head in range(len(range(config["start_layer"], config["num_hidden_layers"] + 1, config["layer_sep"]))):
        tensors[f"lm_head.{head}.linear_head.weight"] = torch.randn(1, config["hidden_size"])
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    named: dict[str, Any] = {"architectures": ["CostWiseGemmaForCausalLM"], "model_type": "cost_wise_gemma"}
    named |= {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
    (folder / "config.json").write_text(json.dumps(config | named))
    write_tokenizer(folder)
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


def write_qwen_tokenizer(folder: Path, n_pieces: int = 900) -> None:
    """Write a byte-level BPE with Qwen's words and marks, and with merges that cross words' ends as its own do.

    Qwen's tokenizer joins punctuation with the line's end after it, so where a row is cut matters.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_pieces, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = [text for question in sample().questions for text in (question.query, *question.passages)]
    tokenizer.train_from_iterator([f"{text}\n{text}\n\n" for text in texts] + [". .\n ?\n !\n"] * 50, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>", *ANSWERS, "1", "0"])
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def write_tokenizer(folder: Path, answers: tuple[str, ...] = ANSWERS) -> None:
    """Write a tokenizer of single bytes, marks, and answers that are tokens of their own."""
    pieces = [*MARKS, *answers, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(MARKS))
    tokenizer.add_tokens(list(answers))
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "pad_token": {"content": "<pad>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def _spread(model: Any) -> None:
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(8.0) if value.ndim == 2 else value.add_(0.1 * torch.randn_like(value))
