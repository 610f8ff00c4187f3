"""What sentence-transformers saved beside a model: the modules around it, and how it is to be asked.

Its CrossEncoder and SentenceTransformer write modules.json, config_sentence_transformers.json and
sentence_bert_config.json (6.2, base/model.py and base/modules/transformer.py). Whatever these files ask for and rankrt
does not compute is refused here, with the file and the field. Knows no prompt.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rankrt_export.checkpoint.fields import read_json, read_object
from rankrt_export.checkpoint.head import Activation, Dense, Head, Norm, Pooling
from rankrt_export.checkpoint.weights import SafetensorsWeights, read
from rankrt_export.errors import CheckpointError

MODULES, CONFIG, TRANSFORMER = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
FILES = (
    *(MODULES, CONFIG, TRANSFORMER, "*_LogitScore/config.json", "*_Pooling/config.json"),
    *(f"*_{name}/{file}" for name in ("Dense", "LayerNorm") for file in ("config.json", "model.safetensors")),
)
# rankrt gives logits, or with `normalize` their sigmoid: of these two it is plain which is which.
Default: TypeAlias = Literal["identity", "sigmoid"]
_ACTIVATIONS: Mapping[str, Default] = {"Identity": "identity", "Sigmoid": "sigmoid"}
_TASKS = ("sequence-classification", "text-generation")
_POOLINGS: Mapping[str, Pooling] = {"cls": "cls", "mean": "mean"}
_HEAD_ACTIVATIONS: Mapping[str, Activation] = {
    "GELU": "gelu",
    "Identity": "identity",
    "ReLU": "relu",
    "SiLU": "silu",
    "Tanh": "tanh",
}
_KNOWN = ("Transformer", "LogitScore", "Pooling", "Dense", "LayerNorm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The tokens that LogitScore reads: the score is the first one's logit, less the second one's if there is one."""

    path: Path
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What sentence-transformers does with a pair before and after the model.

    has_modules    whether there is a modules.json; if not, only `activation` says something
    answers        of a decoder's vocabulary; None for a model that has a head of its own
    head           of a model without one, the modules that make a score of its states
    activation     what the score is put through by default, if that is said
    prompts        texts by name that a request may choose from
    default_prompt  the text before every pair, or its system message; "" for nothing
    is_chat        the pair is put into the tokenizer's chat template
    is_structured  the template is given a list of parts in the place of a text
    chat_options   what the template is given besides
    max_length     the most tokens of a pair, if that is said
    """

    has_modules: bool
    answers: Answers | None = None
    head: Head | None = None
    activation: Default | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    is_chat: bool = False
    is_structured: bool = False
    chat_options: Mapping[str, Any] = field(default_factory=dict)
    max_length: int | None = None


def read_saved(folder: Path, config: Mapping[str, Any]) -> Saved:
    """Read the files of a checkpoint whose config.json is given.

    Raises CheckpointError if they describe an embedding model, or a computation that rankrt does not do.
    """
    said = read_object(folder / CONFIG) if (folder / CONFIG).exists() else {}
    activation = _activation(folder, config, said)
    if not (folder / MODULES).exists():
        return Saved(has_modules=False, activation=activation)
    answers, head = _read_modules(folder, said)
    transformer = read_object(folder / TRANSFORMER) if (folder / TRANSFORMER).exists() else {}
    processing = _check_transformer(folder, transformer, has_head=head is not None)
    message = (transformer.get("modality_config") or {}).get("message")
    prompts = _prompts(folder, said)
    return Saved(
        has_modules=True,
        answers=answers,
        head=head,
        activation=activation,
        prompts=prompts,
        default_prompt=_default_prompt(folder, said, prompts),
        is_chat=message is not None,
        is_structured=isinstance(message, dict) and message.get("format") == "structured",
        chat_options=processing,
        max_length=_length(folder, transformer),
    )


def _activation(folder: Path, config: Mapping[str, Any], said: Mapping[str, Any]) -> Default | None:
    """Return the activation that is said first; refuse one that would change the order of scores."""
    places = [
        (CONFIG, "activation_fn", said.get("activation_fn")),
        (
            "config.json",
            "sentence_transformers.activation_fn",
            config.get("sentence_transformers", {}).get("activation_fn"),
        ),
        ("config.json", "sbert_ce_default_activation_function", config.get("sbert_ce_default_activation_function")),
    ]
    found = []
    for file, name, value in places:
        if value is None:
            continue
        module, _, function = str(value).rpartition(".")
        if function not in _ACTIVATIONS or module.partition(".")[0] != "torch":
            raise CheckpointError(
                f"{folder / file} has {name} = {value!r}; rankrt gives logits, or their sigmoid, so only"
                f" {' and '.join(_ACTIVATIONS)} are implemented"
            )
        found.append(_ACTIVATIONS[function])
    return found[0] if found else None


def _read_modules(folder: Path, said: Mapping[str, Any]) -> tuple[Answers | None, Head | None]:
    """Return the answers of LogitScore if there is one, or the modules of a head; refuse any other chain."""
    path, names, folders = folder / MODULES, [], []
    modules = read_json(path)
    for module in modules if isinstance(modules, list) else [None]:
        if not (isinstance(module, dict) and all(isinstance(module.get(key), str) for key in ("type", "path"))):
            raise CheckpointError(f"{path} is not a list of modules, each with a type and a path")
        names.append(module["type"].rpartition(".")[2])
        folders.append(_beside(path, module["path"]))
        if not module["type"].startswith("sentence_transformers."):
            raise CheckpointError(
                f"{path} has the module {module['type']}, whose code is not sentence-transformers' own. rankrt never"
                " runs code from a checkpoint"
            )
    chain = ", ".join(names)
    kind = said.get("model_type", "SentenceTransformer" if "Pooling" in names else "CrossEncoder")
    if kind != "CrossEncoder":
        raise CheckpointError(
            f"{folder} is an embedding model, not a reranker: sentence-transformers saved it as a {kind} of the modules"
            f" {chain} ({MODULES}). Export the cross-encoder that was fine-tuned from it"
        )
    if unknown := [module["type"] for module, name in zip(modules, names, strict=True) if name not in _KNOWN]:
        raise CheckpointError(
            f"{path} has the module {unknown[0]}, which is not implemented; rankrt knows {', '.join(_KNOWN)}"
        )
    if names[0] != "Transformer" or folders[0] != folder:
        raise CheckpointError(
            f"{folder} is a CrossEncoder of the modules {chain} ({MODULES}), which is not implemented: rankrt exports a"
            " Transformer in the folder itself"
        )
    if names == ["Transformer", "LogitScore"]:
        return _answers(folders[1] / "config.json"), None
    if len(names) == 1:
        return None, None
    if names[1] != "Pooling" or names[-1] != "Dense" or not {"Transformer", "LogitScore"}.isdisjoint(names[1:]):
        raise CheckpointError(
            f"{folder} is a CrossEncoder of the modules {chain} ({MODULES}), which is not implemented: after the"
            " Transformer rankrt reads LogitScore, or Pooling, any of Dense and LayerNorm, and at the end a Dense"
        )
    readers: dict[str, Callable[[Path], Dense | Norm]] = {"Dense": _dense, "LayerNorm": _layer_norm}
    layers = [readers[name](place) for name, place in zip(names[2:], folders[2:], strict=True)]
    _check_layers(folders[2:], layers)
    return None, Head(pooling=_pooling(folders[1] / "config.json"), layers=layers)


def _beside(path: Path, name: str) -> Path:
    if Path(name).name != name:
        raise CheckpointError(f"{path} names the folder {name!r}, which is not a folder beside it")
    return path.parent / name


def _pooling(path: Path) -> Pooling:
    config = read_object(path)
    # Before 5.4 a flag for each mode, such as pooling_mode_cls_token.
    flags = [name.split("_")[2] for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    modes = config.get("pooling_mode", flags)
    mode = modes[0] if isinstance(modes, list) and len(modes) == 1 else modes
    if mode not in _POOLINGS:
        raise CheckpointError(f"{path} has pooling_mode = {mode!r}; only {' and '.join(_POOLINGS)} are implemented")
    if not config.get("include_prompt", True):
        raise CheckpointError(f"{path} has include_prompt = false, which is not implemented")
    return _POOLINGS[mode]


def _dense(folder: Path) -> Dense:
    path = folder / "config.json"
    config = read_object(path)
    function = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = _HEAD_ACTIVATIONS.get(function.rpartition(".")[2]) if function.startswith("torch.") else None
    if activation is None:
        raise CheckpointError(
            f"{path} has activation_function = {function!r}; only {', '.join(_HEAD_ACTIVATIONS)} of torch.nn are"
            " implemented"
        )
    if config.get("use_residual"):
        raise CheckpointError(f"{path} has use_residual, which is not implemented")
    weights = _weights(folder)
    bias = read(weights, "linear.bias") if config.get("bias", True) else None
    return Dense(weight=read(weights, "linear.weight"), bias=bias, activation=activation)


def _layer_norm(folder: Path) -> Norm:
    weights = _weights(folder)
    return Norm(scale=read(weights, "norm.weight"), bias=read(weights, "norm.bias"), epsilon=1e-5)


def _weights(folder: Path) -> SafetensorsWeights:
    if not (file := folder / "model.safetensors").exists():
        raise CheckpointError(f"{file} is missing, which {MODULES} needs; download the checkpoint again")
    return SafetensorsWeights([file])


def _check_layers(folders: Sequence[Path], layers: Sequence[Dense | Norm]) -> None:
    """Raise CheckpointError unless each layer takes what the one before it gives, and the last gives one score."""
    n_features = None
    for place, layer in zip(folders, layers, strict=True):
        n_out, n_in = layer.weight.shape if isinstance(layer, Dense) else layer.scale.shape * 2
        if n_features not in (None, n_in):
            raise CheckpointError(f"{place} takes {n_in} features, and the module before it gives {n_features}")
        n_features = n_out
    if n_features != 1:
        raise CheckpointError(f"{folders[-1]} gives {n_features} scores: it is a classifier. A reranker has one")


def _answers(path: Path) -> Answers:
    config = read_object(path)
    yes, no = config["true_token_id"], config.get("false_token_id")
    ids = [yes] if no is None else [yes, no]
    if (
        any(not isinstance(id_, int) or isinstance(id_, bool) or not 0 <= id_ < 1 << 31 for id_ in ids)
        or config.get("module_input_name", "causal_logits") != "causal_logits"
    ):
        raise CheckpointError(
            f"{path} needs true_token_id and false_token_id as numbers of tokens, and module_input_name ="
            " 'causal_logits'"
        )
    return Answers(path=path, ids=tuple(ids))


def _check_transformer(folder: Path, transformer: Mapping[str, Any], *, has_head: bool) -> Mapping[str, Any]:
    """Return what the chat template is given besides; refuse what changes the text or what is computed from it."""
    for problem in _problems(transformer, ("feature-extraction",) if has_head else _TASKS):
        raise CheckpointError(f"{folder / TRANSFORMER} has {problem}, which is not implemented")
    options = (transformer.get("processing_kwargs") or {}).get("chat_template") or {}
    return {name: value for name, value in options.items() if name != "restore_suffix"}


def _problems(transformer: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[str]:
    if (task := transformer.get("transformer_task", tasks[0])) not in tasks:
        yield f"transformer_task = {task!r}"
    for name in ("do_lower_case", "tokenizer_name_or_path", "query_length", "document_length", "query_expansion"):
        if transformer.get(name):
            yield f"{name} = {transformer[name]!r}"
    for name in ("modality_config", "processing_kwargs"):
        if not isinstance(transformer.get(name) or {}, dict):
            yield f"{name} = {transformer[name]!r}"
    processing = transformer.get("processing_kwargs") or {}
    if others := [name for name, value in processing.items() if value and name != "chat_template"]:
        yield f"processing_kwargs.{others[0]}"
    if not isinstance(processing.get("chat_template") or {}, dict):
        yield f"processing_kwargs.chat_template = {processing['chat_template']!r}"


def _prompts(folder: Path, said: Mapping[str, Any]) -> dict[str, str]:
    """Return the prompts that say something: sentence-transformers saves empty ones for its own names."""
    prompts = said.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise CheckpointError(f"{folder / CONFIG} has prompts = {prompts!r:.80}, expected texts by name")
    return {name: prompt for name, prompt in prompts.items() if prompt}


def _default_prompt(folder: Path, said: Mapping[str, Any], prompts: Mapping[str, str]) -> str:
    if (name := said.get("default_prompt_name")) is None:
        return ""
    if name not in (said.get("prompts") or {}):
        raise CheckpointError(f"{folder / CONFIG} has default_prompt_name = {name!r}, but no such text in prompts")
    return prompts.get(name, "")


def _length(folder: Path, transformer: Mapping[str, Any]) -> int | None:
    length = transformer.get("max_seq_length")
    if length is not None and (not isinstance(length, int) or length < 1):
        raise CheckpointError(f"{folder / TRANSFORMER} has max_seq_length = {length!r}, expected a number of tokens")
    return length
