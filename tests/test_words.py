"""The words in the code: docstrings, comments and messages are in plain English, like the documentation."""

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import pytest

from tests.words import idioms, longest_sentence, mean_words

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("runtime", "export", "finetune", "kernels", "benchmarks", "examples", "scripts", "tiny_reranker")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_in_plain_english(path: Path):
    source = path.read_text(encoding="utf-8")
    explained, said = texts_of(ast.parse(source))
    texts = [*explained, *comments_of(source), *said]
    assert [(line, idiom) for line, text in texts for idiom in idioms(text)] == []
    prose = "\n\n".join(text for _, text in explained)
    assert mean_words(prose) <= 16
    assert max(longest_sentence(text) for _, text in texts) <= 40


def test_the_rules_see_what_they_should():
    assert idioms("Layers behind the exit. Whoever asks, heeds it.") == ["behind", "Whoever", "heeds"]
    assert idioms("./x is no folder. What is left is dropped.") == ["is no", "What is left is dropped."]
    assert idioms("There is no window. What is panda?") == []
    assert longest_sentence("Two words.\n\n    name    of a thing\n    other   of another thing") == 3
    assert mean_words("One two. One two three four.") == 3


def texts_of(tree: ast.Module) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Return the docstrings of a file and its other strings, those of f-strings joined, each with its line."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = list(ast.walk(tree))
    bodies = [node.body[0] for node in nodes if isinstance(node, documented) and ast.get_docstring(node) is not None]
    docstrings = [body.value for body in bodies if isinstance(body, ast.Expr)]
    whole = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    inside = {id(part) for node in whole for part in node.values} | set(map(id, docstrings))
    plain = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in inside]
    return (
        [(node.lineno, ast.literal_eval(node)) for node in docstrings],
        [(node.lineno, "".join(_words_of(node.values))) for node in whole]
        + [(node.lineno, node.value) for node in plain if isinstance(node.value, str)],
    )


def comments_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield each comment with its line; lines of comments alone that follow each other are one comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = [token for token in tokens if token.type == tokenize.COMMENT]
    for _, group in groupby(enumerate(found), key=lambda item: _block_of(*item)):
        lines = [token for _, token in group]
        yield lines[0].start[0], " ".join(line.string.lstrip("# ") for line in lines)


def _block_of(index: int, comment: tokenize.TokenInfo) -> tuple[bool, int]:
    is_alone = comment.line.lstrip().startswith("#")
    return is_alone, comment.start[0] - index if is_alone else index


def _words_of(values: Iterable[ast.expr]) -> Iterator[str]:
    """Yield the parts of an f-string, with a word for each value."""
    for value in values:
        yield value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else "X"
