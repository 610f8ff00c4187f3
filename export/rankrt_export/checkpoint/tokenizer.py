"""The tokenizer of a checkpoint, and the template by which it joins two texts."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from tokenizers import Tokenizer

from rankrt.artifact.manifest import Prompt, Template
from rankrt.errors import MissingExtra, RankrtError
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.modules import CONFIG, Saved
from rankrt_export.errors import CheckpointError

_QUERY, _PASSAGE = 0, 1
# The older forms that transformers turns into a tokenizer.json.
_SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
_VOCABULARIES = (*_SENTENCEPIECE, "vocab.txt", "vocab.json")
# What transformers reads them with; without it, it asks for tiktoken, which reads another format.
_READERS = ("sentencepiece", "google.protobuf")
# The tables of the architectures that are written.
_TABLES = ("embeddings.word_embeddings.weight", "embeddings.tok_embeddings.weight", "model.embed_tokens.weight")


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
    if not original.exists():
        return _converted(checkpoint)
    try:
        return original.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{original} cannot be read: {error.strerror}") from error


def _parsed(checkpoint: Checkpoint, content: bytes) -> Tokenizer:
    path = checkpoint.folder / "tokenizer.json"
    with _explained(f"{path} cannot be read as a tokenizer"):
        tokenizer = Tokenizer.from_buffer(content)
    _check_vocabulary(checkpoint, tokenizer, path)
    return tokenizer


def _check_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer, path: Path) -> None:
    """Refuse a tokenizer with tokens that the model has no vectors for: it is another model's."""
    tables = [name for name in checkpoint.weights.names if name.endswith(_TABLES)]
    if len(tables) != 1:
        return  # of a model that is traced, whose names are its own
    n_vectors, last = checkpoint.weights.shape(tables[0])[0], max(tokenizer.get_vocab().values(), default=-1)
    if last >= n_vectors:
        raise CheckpointError(
            f"{path} has tokens up to number {last}, and the model has {n_vectors} vectors ({tables[0]}): the tokenizer"
            " is another model's"
        )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what tokenizers and transformers raise into CheckpointError.

    A panic of the Rust below tokenizers is not an Exception, and the class that pyo3 gives it cannot be imported.
    """
    try:
        yield
    except RankrtError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(f"{what}: {' '.join(str(error).split())}") from error
        raise


def has_token_types(checkpoint: Checkpoint) -> bool:
    """Tell whether the model tells query and passage apart by token types, and its tokenizer gives them.

    Some multilingual BERTs know types, but have the tokenizer of XLM-RoBERTa, which gives none.
    """
    weights = checkpoint.weights
    tables = [name for name in weights.names if name.endswith("token_type_embeddings.weight")]
    inputs = checkpoint.tokenizer_config.get("model_input_names", ["token_type_ids"])
    if not any(weights.shape(name)[0] > 1 for name in tables) or "token_type_ids" not in inputs:
        return False
    return any(read_tokenizer(checkpoint).encode("a", "b").type_ids)


def template_of(tokenizer: Tokenizer, saved: Saved) -> Template:
    """Read the special tokens of a pair off the tokenizer itself; a prompt stands before the query.

    Raises CheckpointError if it joins pairs in another way than prefix, query, separator, passage, suffix.
    """
    with _explained("tokenizer.json cannot join a pair of texts"):
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
        prompt=_prompt(saved) if saved.prompts else None,
    )


def _prompt(saved: Saved) -> Prompt:
    """Return the prompts that sentence-transformers puts before a query, as it is."""
    return Prompt(
        query_instruction=saved.default_prompt,
        query_format="{}{}",
        passage_instruction="",
        passage_format="{}{}",
        question=None,
        instructed_format="{}{}",
        instructions=dict(saved.prompts),
        style="prompts before the query",
        said_by=CONFIG,
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
    if any((checkpoint.folder / name).exists() for name in _SENTENCEPIECE):
        _check_readers(checkpoint.folder)
    with _explained(f"{checkpoint.folder} has no tokenizer.json, and none can be made"):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
        return str(tokenizer.backend_tokenizer.to_str()).encode()


def _check_readers(folder: Path) -> None:
    for name in _READERS:
        try:
            import_module(name)
        except ImportError as error:
            raise MissingExtra(
                f"{folder} has no tokenizer.json but a sentencepiece model, which is converted with {name}. It is not"
                " installed; the export extra brings it: pip install 'rankrt[export]'"
            ) from error
