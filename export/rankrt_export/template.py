"""The tokenizer of a checkpoint, and the template by which it joins two texts."""

from pathlib import Path

from tokenizers import Tokenizer

from rankrt.artifact import Template
from rankrt_export.checkpoint import Checkpoint
from rankrt_export.errors import CheckpointError

_QUERY, _PASSAGE = 0, 1
# The older forms that transformers turns into a tokenizer.json.
_VOCABULARIES = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model", "vocab.txt", "vocab.json")


def write_tokenizer(checkpoint: Checkpoint, path: Path) -> Tokenizer:
    """Write the checkpoint's tokenizer.json, converted from its older form if it has no such file, and return it.

    Raises CheckpointError if there is no tokenizer.
    """
    content = _content(checkpoint)
    tokenizer = _parsed(checkpoint, content)
    path.write_bytes(content)
    return tokenizer


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Return the same without writing it."""
    return _parsed(checkpoint, _content(checkpoint))


def _content(checkpoint: Checkpoint) -> bytes:
    original = checkpoint.folder / "tokenizer.json"
    return original.read_bytes() if original.exists() else _converted(checkpoint)


def _parsed(checkpoint: Checkpoint, content: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint.folder / 'tokenizer.json'} cannot be read as a tokenizer: {error}"
        ) from error


def template_of(tokenizer: Tokenizer) -> Template:
    """Read the special tokens of a pair off the tokenizer itself.

    Raises CheckpointError if it joins pairs in another way than prefix, query, separator, passage, suffix.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pair = tokenizer.encode("a", "b")
    sides = pair.sequence_ids
    if _QUERY not in sides or _PASSAGE not in sides:
        raise CheckpointError("the tokenizer does not keep the two texts of a pair apart")
    query, passage = _extent(sides, _QUERY), _extent(sides, _PASSAGE)
    if (
        query.stop > passage.start
        or any(pair.type_ids[: passage.start])
        or len(set(pair.type_ids[passage.start :])) > 1
    ):
        raise CheckpointError(f"the tokenizer joins pairs in a way that is not implemented: {pair.tokens}")
    return Template(
        prefix=tuple(pair.ids[: query.start]),
        separator=tuple(pair.ids[query.stop : passage.start]),
        suffix=tuple(pair.ids[passage.stop :]),
    )


def _extent(sides: list[int | None], side: int) -> slice:
    places = [i for i, found in enumerate(sides) if found == side]
    return slice(places[0], places[-1] + 1)


def _converted(checkpoint: Checkpoint) -> bytes:
    from transformers import AutoTokenizer

    # Without any of them transformers 5 makes up a tokenizer of special tokens only.
    if not any((checkpoint.folder / name).exists() for name in _VOCABULARIES):
        raise CheckpointError(
            f"{checkpoint.folder} has no tokenizer: neither tokenizer.json nor {', '.join(_VOCABULARIES)}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
        return str(tokenizer.backend_tokenizer.to_str()).encode()
    except Exception as error:
        raise CheckpointError(f"{checkpoint.folder} has no tokenizer.json, and none can be made: {error}") from error
