"""The tokens of texts, as TEI's /tokenize answers them. Blocks: for a thread."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from rankrt.server.dialects import is_set
from rankrt.server.dialects.tei import TeiToken, TeiTokenize
from rankrt.server.failures import Failure
from rankrt.server.models import Model
from rankrt.text.tokenizers import Located

# A text is not cut here, and takes about 0.2 s a megabyte.
_MAX_CHARACTERS = 1 << 20


class _AddedToken(msgspec.Struct, frozen=True):
    id: int
    content: str


class _File(msgspec.Struct, frozen=True):
    added_tokens: list[_AddedToken]


def of_request(request: TeiTokenize, model: Model) -> list[list[TeiToken]]:
    """Return the tokens of each text. Raises a Failure for none, or for more than 1,048,576 characters."""
    texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    if not texts:
        raise Failure("empty", "there are no texts to tokenize")
    if (n := sum(map(len, texts))) > _MAX_CHARACTERS:
        raise Failure("too_many", f"too much text to tokenize: {n} characters (limit {_MAX_CHARACTERS})")
    found = [_tokens(located, text) for located, text in zip(model.tokenizer.located(texts), texts, strict=True)]
    if not is_set(request.add_special_tokens, otherwise=True):
        return found
    template = model.artifact.manifest.template
    names = _names(model.artifact.path(model.artifact.manifest.tokenizer))
    first, last = _special(template.prefix, names), _special(template.suffix, names)
    return [[*first, *tokens, *last] for tokens in found]


def _tokens(located: Located, text: str) -> list[TeiToken]:
    starts = _byte_of_character(text)
    return [
        TeiToken(id=id_, text=text[start:stop], special=False, start=starts[start], stop=starts[stop])
        for id_, (start, stop) in zip(located.ids.tolist(), located.spans, strict=True)
    ]


def _byte_of_character(text: str) -> Sequence[int]:
    """Return where in its UTF-8 each character of a text begins, and where the last one ends."""
    if text.isascii():
        return range(len(text) + 1)
    starts = [0]
    for character in text:
        starts.append(starts[-1] + len(character.encode()))
    return starts


def _special(ids: Sequence[int], names: Mapping[int, str]) -> list[TeiToken]:
    return [TeiToken(id=id_, text=names.get(id_, ""), special=True, start=None, stop=None) for id_ in ids]


@functools.cache
def _names(tokenizer: Path) -> Mapping[int, str]:
    """Return what a tokenizer.json calls its added tokens, of which the special ones are."""
    file = msgspec.json.decode(tokenizer.read_bytes(), type=_File)
    return {token.id: token.content for token in file.added_tokens}
