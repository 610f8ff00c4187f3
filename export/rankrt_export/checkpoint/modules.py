"""What sentence-transformers saved beside a model: the modules around it, and how it is to be asked.

Its CrossEncoder and SentenceTransformer write modules.json, config_sentence_transformers.json and
sentence_bert_config.json (6.2, base/model.py and base/modules/transformer.py). rankrt computes one logit of one model:
everything else that these files ask for is refused here, with the file and the field. Knows no prompt.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankrt_export.checkpoint.fields import read_json, read_object
from rankrt_export.errors import CheckpointError

MODULES, CONFIG, TRANSFORMER = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
FILES = (MODULES, CONFIG, TRANSFORMER, "*_LogitScore/config.json")
# rankrt gives logits, or with `normalize` their sigmoid: of these two it is plain which is which.
_ACTIVATIONS = ("Identity", "Sigmoid")
_TASKS = ("sequence-classification", "text-generation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The tokens that LogitScore reads: the score is the logit of `yes`, less that of `no` if there is one."""

    path: Path
    yes: int
    no: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What sentence-transformers does with a pair before and after the model.

    has_modules   whether there is a modules.json; if not, the rest says nothing
    answers       of a decoder's vocabulary; None for a model that has a head of its own
    prompt        what is put before every pair, or is its system message; "" for nothing
    is_chat       the pair is put into the tokenizer's chat template
    chat_options  what the template is given besides
    max_length    the most tokens of a pair, if that is said
    """

    has_modules: bool
    answers: Answers | None = None
    prompt: str = ""
    is_chat: bool = False
    chat_options: Mapping[str, Any]
    max_length: int | None = None


def read_saved(folder: Path, config: Mapping[str, Any]) -> Saved:
    """Read the files of a checkpoint whose config.json is given.

    Raises CheckpointError if they describe an embedding model, or a computation that rankrt does not do.
    """
    said = read_object(folder / CONFIG) if (folder / CONFIG).exists() else {}
    _check_activation(folder, config, said)
    if not (folder / MODULES).exists():
        return Saved(has_modules=False, chat_options={})
    answers = _check_modules(folder, said)
    transformer = read_object(folder / TRANSFORMER) if (folder / TRANSFORMER).exists() else {}
    processing = _check_transformer(folder, transformer)
    is_chat = "message" in (transformer.get("modality_config") or {})
    saved = Saved(
        has_modules=True,
        answers=answers,
        prompt=_default_prompt(folder, said),
        is_chat=is_chat,
        chat_options=processing,
        max_length=_length(folder, transformer),
    )
    if saved.prompt and answers is None and not is_chat:
        raise CheckpointError(
            f"{folder / CONFIG} has default_prompt_name = {said['default_prompt_name']!r}: sentence-transformers puts"
            f" {saved.prompt!r:.80} before every query, which is not implemented"
        )
    return saved


def _check_activation(folder: Path, config: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Refuse what would change the order of scores, or what `normalize` would not undo."""
    places = [
        (CONFIG, "activation_fn", said.get("activation_fn")),
        (
            "config.json",
            "sentence_transformers.activation_fn",
            config.get("sentence_transformers", {}).get("activation_fn"),
        ),
        ("config.json", "sbert_ce_default_activation_function", config.get("sbert_ce_default_activation_function")),
    ]
    for file, field, value in places:
        if value is not None and not (
            str(value).startswith("torch.") and str(value).rpartition(".")[2] in _ACTIVATIONS
        ):
            raise CheckpointError(
                f"{folder / file} has {field} = {value!r}; rankrt gives logits, or their sigmoid, so only"
                f" {' and '.join(_ACTIVATIONS)} are implemented"
            )


def _check_modules(folder: Path, said: Mapping[str, Any]) -> Answers | None:
    """Return the answers of LogitScore if there is one; refuse any other chain than a model, or a model and that."""
    path, names, paths = folder / MODULES, [], []
    modules = read_json(path)
    for module in modules if isinstance(modules, list) else [None]:
        if not (isinstance(module, dict) and all(isinstance(module.get(key), str) for key in ("type", "path"))):
            raise CheckpointError(f"{path} is not a list of modules, each with a type and a path")
        names.append(module["type"].rpartition(".")[2])
        paths.append(module["path"])
    chain = ", ".join(names)
    kind = said.get("model_type", "SentenceTransformer" if "Pooling" in names else "CrossEncoder")
    if kind != "CrossEncoder":
        raise CheckpointError(
            f"{folder} is an embedding model, not a reranker: sentence-transformers saved it as a {kind} of the modules"
            f" {chain} ({MODULES}). Export the cross-encoder that was fine-tuned from it"
        )
    if names not in (["Transformer"], ["Transformer", "LogitScore"]) or paths[0]:
        raise CheckpointError(
            f"{folder} is a CrossEncoder of the modules {chain} ({MODULES}), which is not implemented: rankrt exports a"
            " Transformer in the folder itself, alone or with LogitScore"
        )
    return _answers(folder / paths[1] / "config.json") if len(names) > 1 else None


def _answers(path: Path) -> Answers:
    config = read_object(path)
    yes, no = config["true_token_id"], config.get("false_token_id")
    ids = [yes] if no is None else [yes, no]
    if (
        any(not isinstance(id_, int) or not 0 <= id_ < 1 << 31 for id_ in ids)
        or config.get("module_input_name") != "causal_logits"
    ):
        raise CheckpointError(
            f"{path} needs true_token_id and false_token_id as numbers of tokens, and module_input_name ="
            " 'causal_logits'"
        )
    return Answers(path=path, yes=yes, no=no)


def _check_transformer(folder: Path, transformer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the chat template is given besides; refuse what changes the text or what is computed from it."""
    for problem in _problems(transformer):
        raise CheckpointError(f"{folder / TRANSFORMER} has {problem}, which is not implemented")
    options = (transformer.get("processing_kwargs") or {}).get("chat_template") or {}
    return {name: value for name, value in options.items() if name != "restore_suffix"}


def _problems(transformer: Mapping[str, Any]) -> Iterator[str]:
    if (task := transformer.get("transformer_task", _TASKS[0])) not in _TASKS:
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


def _default_prompt(folder: Path, said: Mapping[str, Any]) -> str:
    if (name := said.get("default_prompt_name")) is None:
        return ""
    prompts = said.get("prompts")
    if not isinstance(prompts, dict) or not isinstance(prompt := prompts.get(str(name)), str):
        raise CheckpointError(f"{folder / CONFIG} has default_prompt_name = {name!r}, but no such text in prompts")
    return prompt


def _length(folder: Path, transformer: Mapping[str, Any]) -> int | None:
    length = transformer.get("max_seq_length")
    if length is not None and (not isinstance(length, int) or length < 1):
        raise CheckpointError(f"{folder / TRANSFORMER} has max_seq_length = {length!r}, expected a number of tokens")
    return length
