"""How decoders are asked: the words around query and passage, and the tokens whose logits are the answer.

A decoder's checkpoint does not say how it was trained to be asked, so this is a table of the ways there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from rankrt.artifact import Prompt, Template
from rankrt_export.errors import CheckpointError


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


def style_of(architecture: str) -> Style:
    """Return how the models of an architecture are asked unless the user says otherwise."""
    return STYLES["qwen3-reranker" if architecture.startswith("Qwen3") else "flagembedding"]


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
    return token["content"] if isinstance(token, dict) else token


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
