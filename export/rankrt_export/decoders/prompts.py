"""How a decoder is asked: what says it, and the tokens that its words become.

A model that is asked in another way than it was trained to be ranks wrongly, and nothing else shows it: a comparison
with PyTorch asks both in the same way. So a way is chosen only where the checkpoint's files or its authors' name for it
say which, or the user does.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from tokenizers import Tokenizer

from rankrt.artifact.manifest import Template
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.families import LAYERWISE, LIGHTWEIGHT
from rankrt_export.checkpoint.fields import token_of
from rankrt_export.checkpoint.modules import MODULES, TRANSFORMER
from rankrt_export.decoders.chats import chat_template, rendered, whole_of_chat
from rankrt_export.decoders.prompt_files import PromptFile
from rankrt_export.decoders.styles import PUBLISHED, STYLES, Style
from rankrt_export.decoders.wordings import PROBES, taken_apart
from rankrt_export.errors import CheckpointError, OptionsError

# Classes of FlagEmbedding's own, and how their models are asked.
_OF_CLASSES = {LAYERWISE: "flagembedding", LIGHTWEIGHT: "flagembedding-lightweight"}


def style_for(checkpoint: Checkpoint, tokenizer: Tokenizer, given: str | PromptFile | None) -> Style:
    """Return how a decoder is asked: as the user says, by a style's name or a file, or else as the checkpoint says.

    Raises CheckpointError if nothing says it, if the checkpoint says otherwise than the user, or if the vocabulary
    lacks an answer; OptionsError for a style that does not exist.
    """
    if isinstance(given, str) and given not in STYLES:
        raise OptionsError(f"--prompt {given}: there are {', '.join(STYLES)}")
    style = _style_for(checkpoint, tokenizer, given)
    answer_ids(tokenizer, style)
    return style


def _style_for(checkpoint: Checkpoint, tokenizer: Tokenizer, given: str | PromptFile | None) -> Style:
    if checkpoint.saved.has_modules:
        return _style_of_modules(checkpoint, tokenizer, given)
    if given is not None:
        return _given(checkpoint, tokenizer, given)
    if (found := _style_of_name(checkpoint) or _style_of_template(checkpoint)) is None:
        raise CheckpointError(
            f"{checkpoint.id} is a {checkpoint.architecture}. Neither its files ({MODULES}, a chat template with the"
            " roles query and document) nor its name say how it was trained to be asked. A chat model is not a"
            f" reranker. {_ADVICE}"
        )
    return found


_ADVICE = (
    f"If you know how it was trained to be asked, name the style, --prompt {' or '.join(STYLES)}, or give its words,"
    " --prompt-file FILE"
)


def _given(checkpoint: Checkpoint, tokenizer: Tokenizer, given: str | PromptFile) -> Style:
    has_head = checkpoint.has_head
    if isinstance(given, str):
        style = _said_by(STYLES[given], f"--prompt {given}")
    else:
        style = taken_apart(given.whole, tokenizer, str(given.path))
        named = msgspec.structs.replace(style.prompt, style=given.path.stem)
        style = _said_by(replace(style, prompt=named, answers=given.answers), f"--prompt-file {given.path.name}")
        if has_head == bool(given.answers):
            needs = "has a head of its own, so answers has to be left out" if has_head else "needs answers"
            raise CheckpointError(f"{given.path}: {checkpoint.id} is a {checkpoint.architecture}, which {needs}")
    return replace(style, answers=()) if has_head else style


def _style_of_name(checkpoint: Checkpoint) -> Style | None:
    if (style := _OF_CLASSES.get(checkpoint.architecture)) is not None:
        return _with_head(checkpoint, _said_by(STYLES[style], f"the class {checkpoint.architecture}"))
    name = checkpoint.base.rpartition("/")[2].lower().removesuffix("-seq-cls")
    families, style = PUBLISHED.get(name, ((), ""))
    if checkpoint.architecture.partition("For")[0] not in families:
        return None
    return _with_head(checkpoint, _said_by(STYLES[style], f"the name {checkpoint.base}"))


def _style_of_template(checkpoint: Checkpoint) -> Style | None:
    """Return the style whose words the chat template renders to the letter; None if there is none."""
    if (template := chat_template(checkpoint)) is None:
        return None
    try:
        found = [rendered(checkpoint, template, pair) for pair in PROBES]
    except CheckpointError:  # a template for conversations, which knows no queries and documents
        return None
    first = token_of(checkpoint.tokenizer_config, "bos_token") or ""
    for style in STYLES.values():
        if found == [style.text(pair, first) for pair in PROBES]:
            return _with_head(checkpoint, _said_by(style, "its chat template"))
    return None


def _style_of_modules(checkpoint: Checkpoint, tokenizer: Tokenizer, given: str | PromptFile | None) -> Style:
    """Return the style that does what sentence-transformers does, by the modules that it saved."""
    saved, folder = checkpoint.saved, checkpoint.folder
    if (saved.answers is None) != checkpoint.architecture.endswith("ForSequenceClassification"):
        raise CheckpointError(
            f"{folder / MODULES} does not go with config.json, which names a {checkpoint.architecture}: the score of a"
            " ...ForCausalLM is read by LogitScore, and a ...ForSequenceClassification has a head instead"
        )
    answers = () if saved.answers is None else saved.answers.ids
    if not saved.is_chat:
        if given is None:
            raise CheckpointError(
                f"{folder / MODULES} asks a {checkpoint.architecture} with query and passage alone, without a prompt"
                f" around them ({TRANSFORMER} has no modality 'message'), which is not implemented. {_ADVICE}"
            )
        style = _given(checkpoint, tokenizer, given)
        _check_answers(checkpoint, tokenizer, style)
        return style
    if given is not None:
        option = f"--prompt {given}" if isinstance(given, str) else f"--prompt-file {given.path}"
        raise CheckpointError(
            f"{option}: {checkpoint.id} says itself how it is asked, by its chat template ({folder / MODULES}). Leave"
            " the option out"
        )
    if (template := chat_template(checkpoint)) is None:
        raise CheckpointError(f"{folder / TRANSFORMER} has the modality 'message', but there is no chat template")
    style = taken_apart(whole_of_chat(checkpoint, template), tokenizer, f"the chat template of {folder}")
    instructions = dict(saved.prompts) if style.prompt.instructed_format else {}
    prompt = msgspec.structs.replace(style.prompt, style="chat template", instructions=instructions)
    return _said_by(replace(style, prompt=prompt, answers=answers), MODULES)


def _said_by(style: Style, said_by: str) -> Style:
    return replace(style, prompt=msgspec.structs.replace(style.prompt, said_by=said_by))


def _with_head(checkpoint: Checkpoint, style: Style) -> Style:
    return replace(style, answers=()) if checkpoint.has_head else style


def _check_answers(checkpoint: Checkpoint, tokenizer: Tokenizer, style: Style) -> None:
    """Refuse a style that reads the score from other tokens than LogitScore."""
    if (said := checkpoint.saved.answers) is None or answer_ids(tokenizer, style) == said.ids:
        return
    theirs = " and ".join(f"{id_} ({tokenizer.id_to_token(id_)!r})" for id_ in said.ids)
    ours = " and ".join(map(repr, style.answers))
    raise CheckpointError(
        f"{said.path} reads the score from the tokens {theirs}. {style.prompt.said_by} reads it from {ours}, so the"
        " scores would be others"
    )


def prompted_template(tokenizer: Tokenizer, style: Style, tokenizer_config: Mapping[str, Any]) -> Template:
    """Tokenize the words of a style."""
    first = _first_token(tokenizer, tokenizer_config) if style.begins else ()
    return Template(
        prefix=(*first, *_ids(tokenizer, style.prefix)),
        separator=_ids(tokenizer, style.separator),
        suffix=tuple(id_ for text in style.suffix for id_ in _ids(tokenizer, text)),
        prompt=style.prompt,
        passage_first=style.passage_first,
    )


def answer_ids(tokenizer: Tokenizer, style: Style) -> tuple[int, ...]:
    """Return the tokens whose logits a style reads. Raises CheckpointError for an answer that is several pieces."""
    return tuple(_answer_id(tokenizer, answer) for answer in style.answers)


def answer_tokens(tokenizer: Tokenizer, style: Style) -> tuple[str, ...]:
    """Return the same as people read them."""
    return tuple(
        answer if isinstance(answer, str) else str(tokenizer.decode([answer], skip_special_tokens=False))
        for answer in style.answers
    )


def _answer_id(tokenizer: Tokenizer, answer: str | int) -> int:
    if isinstance(answer, int):
        if tokenizer.id_to_token(answer) is None:
            raise CheckpointError(f"the score is the logit of token {answer}, which the vocabulary does not have")
        return answer
    encoding = tokenizer.encode(answer, add_special_tokens=False)
    if len(encoding.ids) != 1 or encoding.ids[0] == tokenizer.token_to_id("<unk>"):
        raise CheckpointError(
            f"the vocabulary has no token {answer!r} (it becomes {encoding.tokens}), whose logit the score is: was this"
            " model trained to answer that?"
        )
    return int(encoding.ids[0])


def _first_token(tokenizer: Tokenizer, tokenizer_config: Mapping[str, Any]) -> tuple[int, ...]:
    """As FlagEmbedding: none where the token also pads."""
    first, padding = (token_of(tokenizer_config, key) for key in ("bos_token", "pad_token"))
    if first is None or first == padding:
        return ()
    if (id_ := tokenizer.token_to_id(first)) is None:
        raise CheckpointError(f"tokenizer_config.json names {first!r} as bos_token, which the vocabulary does not have")
    return (id_,)


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids) if text else ()
