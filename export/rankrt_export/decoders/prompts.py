"""How decoders are asked: the words around query and passage, and the tokens whose logits are the answer.

A model that is asked in another way than it was trained to be ranks wrongly, and nothing else shows it: a comparison
with PyTorch asks both in the same way. So a way is chosen only where the checkpoint's files or its authors' name for it
say which, or the user does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from rankrt.artifact.manifest import Prompt, Template
from rankrt.text.instructions import Form
from rankrt.text.pairs import Pair
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.modules import MODULES, TRANSFORMER
from rankrt_export.errors import CheckpointError, OptionsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A way to ask: a row is prefix, query, separator, passage, suffix, each tokenized apart.

    begins   with the tokenizer's token for the beginning of a text, if it has one
    yes, no  the score is the logit of `yes`, less that of `no` if there is one
    """

    prompt: Prompt
    begins: bool
    prefix: str
    separator: str
    suffix: tuple[str, ...]
    yes: str
    no: str | None


_QUESTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a"
    " prediction of either 'Yes' or 'No'."
)
STYLES: Mapping[str, Style] = {
    # FlagEmbedding 1.4.2, inference/reranker/decoder_only/base.py: separator and question stand behind the passage too.
    "flagembedding": Style(
        prompt=Prompt(
            query_instruction="A: ",
            query_format="{}{}",
            passage_instruction="B: ",
            passage_format="{}{}",
            question=_QUESTION,
        ),
        begins=True,
        prefix="",
        separator="\n",
        suffix=("\n", _QUESTION),
        yes="Yes",
        no=None,
    ),
    # The model card of Qwen3-Reranker. It tokenizes instruction, query and document as one text: its tokenizer never
    # joins a line's end with what follows, so the text may be cut there.
    "qwen3-reranker": Style(
        prompt=Prompt(
            query_instruction="Given a web search query, retrieve relevant passages that answer the query",
            query_format="<Instruct>: {}\n<Query>: {}\n",
            passage_instruction="",
            passage_format="{}<Document>: {}",
            question=None,
        ),
        begins=False,
        prefix="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the"
        ' Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        separator="",
        suffix=("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
        yes="yes",
        no="no",
    ),
}


# The models that their authors ask so: by the last part of their id the family of their class and the style.
# Conversions to a head keep the name, and add "-seq-cls" to it.
_PUBLISHED: Mapping[str, tuple[str, str]] = {
    "bge-reranker-v2-gemma": ("Gemma", "flagembedding"),
    "qwen3-reranker-0.6b": ("Qwen3", "qwen3-reranker"),
    "qwen3-reranker-4b": ("Qwen3", "qwen3-reranker"),
    "qwen3-reranker-8b": ("Qwen3", "qwen3-reranker"),
}
# A class of FlagEmbedding's own, which no other way of asking has.
_LAYERWISE = "LayerWiseMiniCPMForCausalLM"
# Two pairs tell a template that puts texts in from one that repeats a constant; the spaces, one that strips them.
_PROBES = (("who is it?", "it is me"), (" what\nis it ", " a passage\n\nof two "))


def style_for(checkpoint: Checkpoint, tokenizer: Tokenizer, name: str | None) -> Style:
    """Return how a decoder is asked: in the style of that name if the user gives one, else as the checkpoint says.

    Raises CheckpointError if nothing says it, or if sentence-transformers' files ask in another way; OptionsError for a
    style that there is not.
    """
    if name is not None and name not in STYLES:
        raise OptionsError(f"--prompt {name}: there are {', '.join(STYLES)}")
    if checkpoint.saved.has_modules:
        return _style_of_modules(checkpoint, tokenizer, name)
    if name is None:
        name = _style_of_template(checkpoint) or _style_of_name(checkpoint)
    if name is None:
        raise CheckpointError(
            f"{checkpoint.id} is a {checkpoint.architecture}, and nothing in it says how it was trained to be asked:"
            f" it is not called {', '.join(_PUBLISHED)}, and no chat template of it asks as these are asked. {_ADVICE}"
        )
    return STYLES[name]


_ADVICE = (
    f"If you know that it was trained with one of these prompts, say which: --prompt {' or --prompt '.join(STYLES)}."
    " Others are not implemented"
)


def _style_of_name(checkpoint: Checkpoint) -> str | None:
    if checkpoint.architecture == _LAYERWISE:
        return "flagembedding"
    name = checkpoint.base.rpartition("/")[2].lower().removesuffix("-seq-cls")
    family, style = _PUBLISHED.get(name, ("", None))
    return style if checkpoint.architecture.startswith(f"{family}For") else None


def _style_of_template(checkpoint: Checkpoint) -> str | None:
    """Return the style whose words the chat template renders to the letter; None if there is none."""
    if (template := chat_template(checkpoint)) is None:
        return None
    try:
        found = [_rendered(checkpoint, template, pair) for pair in _PROBES]
    except CheckpointError:  # a template for conversations, which knows no queries and documents
        return None
    return next((name for name, style in STYLES.items() if found == _texts(checkpoint, style)), None)


def _style_of_modules(checkpoint: Checkpoint, tokenizer: Tokenizer, name: str | None) -> Style:
    """Return the style that does what sentence-transformers does."""
    saved, folder = checkpoint.saved, checkpoint.folder
    if (saved.answers is None) != checkpoint.architecture.endswith("ForSequenceClassification"):
        raise CheckpointError(
            f"{folder / MODULES} does not go with config.json, which names a {checkpoint.architecture}: the score of a"
            " ...ForCausalLM is read by LogitScore, and a ...ForSequenceClassification has a head instead"
        )
    if saved.is_chat:
        if (template := chat_template(checkpoint)) is None:
            raise CheckpointError(f"{folder / TRANSFORMER} has the modality 'message', but there is no chat template")
        found = [_rendered(checkpoint, template, pair) for pair in _PROBES]
        fitting = [key for key, style in STYLES.items() if found == _texts(checkpoint, style)]
        if not fitting or (name is not None and name not in fitting):
            raise CheckpointError(
                f"{folder} has a chat template that asks {found[0]!r:.600}; {_not(name)}. {_OTHER_WORDS}"
            )
        name = fitting[0]
    elif name is None:
        raise CheckpointError(
            f"{folder / MODULES} asks a {checkpoint.architecture} with query and passage alone, without a prompt"
            f" around them ({TRANSFORMER} has no modality 'message'), which is not implemented. {_ADVICE}"
        )
    _check_answers(checkpoint, tokenizer, name)
    return STYLES[name]


_OTHER_WORDS = "rankrt would ask other words than the model was trained with"


def _not(name: str | None) -> str:
    return (
        f"--prompt {name} does not" if name else f"none of the prompts that are implemented ({', '.join(STYLES)}) does"
    )


def _check_answers(checkpoint: Checkpoint, tokenizer: Tokenizer, name: str) -> None:
    """Refuse a LogitScore that reads other tokens than the style."""
    if (said := checkpoint.saved.answers) is None:
        return
    style = STYLES[name]
    ours = [None if answer is None else answer_id(tokenizer, answer) for answer in (style.yes, style.no)]
    if ours != [said.yes, said.no]:
        theirs = [None if id_ is None else tokenizer.id_to_token(id_) for id_ in (said.yes, said.no)]
        raise CheckpointError(
            f"{said.path} has true_token_id = {said.yes} ({theirs[0]!r}) and false_token_id = {said.no}"
            f" ({theirs[1]!r}); the prompt {name} reads the score from {style.yes!r} and {style.no!r}, so its scores"
            " would be others"
        )


def chat_template(checkpoint: Checkpoint) -> str | None:
    """Return the checkpoint's chat template: of chat_template.jinja, or of tokenizer_config.json."""
    path = checkpoint.folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read as text: {error}") from error
    found = checkpoint.tokenizer_config.get("chat_template")
    if isinstance(found, list):  # several by name
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _rendered(checkpoint: Checkpoint, template: str, pair: Pair) -> str:
    """Return a pair as sentence-transformers puts it into a chat template: a message for each role."""
    from transformers.utils.chat_template_utils import render_jinja_template

    saved = checkpoint.saved
    roles = zip(("system", "query", "document"), (saved.prompt, *pair), strict=True)
    messages = [{"role": role, "content": text} for role, text in roles if text or role != "system"]
    special = {key: token_of(checkpoint.tokenizer_config, key) or "" for key in ("bos_token", "eos_token", "pad_token")}
    try:
        rendered, _ = render_jinja_template([messages], chat_template=template, **(special | dict(saved.chat_options)))
        return str(rendered[0])
    except Exception as error:  # what a template may raise is jinja's, and the template's own
        raise CheckpointError(f"the chat template of {checkpoint.folder} cannot be rendered: {error}") from error


def _texts(checkpoint: Checkpoint, style: Style) -> list[str]:
    """Return what a style makes of the probes, as one text each."""
    first = (token_of(checkpoint.tokenizer_config, "bos_token") or "") if style.begins else ""
    of_query, of_passage = forms(style)
    return [
        first
        + style.prefix
        + of_query.around(query)
        + style.separator
        + of_passage.around(passage)
        + "".join(style.suffix)
        for query, passage in _PROBES
    ]


def forms(style: Style) -> tuple[Form, Form]:
    """Return the forms of query and passage."""
    prompt = style.prompt
    return (
        Form(instruction=prompt.query_instruction, format=prompt.query_format),
        Form(instruction=prompt.passage_instruction, format=prompt.passage_format),
    )


def prompted_template(tokenizer: Tokenizer, style: Style, tokenizer_config: Mapping[str, Any]) -> Template:
    """Tokenize the words of a style."""
    first = _first_token(tokenizer, tokenizer_config) if style.begins else ()
    return Template(
        prefix=(*first, *_ids(tokenizer, style.prefix)),
        separator=_ids(tokenizer, style.separator),
        suffix=tuple(id_ for text in style.suffix for id_ in _ids(tokenizer, text)),
        prompt=style.prompt,
    )


def answer_id(tokenizer: Tokenizer, answer: str) -> int:
    """Return the token that is an answer. Raises CheckpointError if the vocabulary has none that is just that."""
    encoding = tokenizer.encode(answer, add_special_tokens=False)
    if len(encoding.ids) != 1 or encoding.ids[0] == tokenizer.token_to_id("<unk>"):
        raise CheckpointError(
            f"the vocabulary has no token {answer!r} (it becomes {encoding.tokens}), whose logit the score is: was this"
            " model trained to answer that?"
        )
    return int(encoding.ids[0])


def token_of(tokenizer_config: Mapping[str, Any], key: str) -> str | None:
    """Return a special token of tokenizer_config.json, which may stand there with its properties."""
    token = tokenizer_config.get(key)
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str | None):
        raise CheckpointError(f"tokenizer_config.json has {key} = {token!r}, expected a text")
    return content


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
