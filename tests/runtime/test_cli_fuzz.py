"""Any arguments of the command: an answer or a sentence, never a traceback."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankrt.cli.main import main
from tests.support import tiny_artifact

_FILES = {
    "documents.txt": b"one\ntwo three\n",
    "documents.jsonl": b'{"text": "one", "id": 1, "score": 2}\n"two"\n',
    "documents.csv": b"id,text,title\n1,one,two\n",
    "pairs.jsonl": b'{"query": "one", "passage": "two", "id": 1}\n{"query": "one", "passage": "nan"}\n',
    "queries.json": b'[{"query": "one", "documents": ["two", {"text": "three", "id": "a b"}]}]',
    "latin": b"caf\xe9\n",
    "empty": b"",
}
_OPTIONS = ["--query", "--queries", "--documents", "--format", "--column", "--top-n", "--refine", "--progressive"]
_OPTIONS += ["--output-format", "--json", "--device", "--precision", "--instruction-set", "--revision", "--threads"]
_OPTIONS += ["--max-length", "--query-max-length", "--truncation", "--long-documents", "--cutoff-layer", "--normalize"]
_OPTIONS += ["--gpu-memory-gb", "--prepare", "--no-prepare", "--help", "--version", "--nonsense", "--qu"]
_VALUES = ["one", "0", "1", "2", "-1", "7", "64", "65", "nan", "text", "json", "jsonl", "csv", "tsv", "trec", "fp32"]
_VALUES += ["int8", "auto", "cpu", "cuda", "cuda:1", "cuda:x", "exact", "margins", "chunk", "only_passage", "vnni"]
_VALUES += ["longest_first", "id", "title", "nowhere", "--", "=", ",", "\udce9"]
_COMMANDS = ["rerank", "score", "info", "prepare", "doctor", "completion"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that gives the files of the arguments their folder."""
    folder = tmp_path_factory.mktemp("files")
    tiny_artifact(folder / "artifact")
    for name, content in _FILES.items():
        (folder / name).write_bytes(content)
    return lambda argument: str(folder / argument) if (folder / argument).exists() and argument else argument


# Without slashes, which would make the name of a model one of the hub's.
_short = st.text(st.characters(exclude_characters="/"), max_size=5)
_values = st.one_of(st.sampled_from(_VALUES), st.sampled_from([*_FILES, "artifact", "."]), _short)
_options = st.one_of(
    st.sampled_from(_OPTIONS).map(lambda name: [name]),
    st.tuples(st.sampled_from(_OPTIONS), _values).map(list),
    st.tuples(st.sampled_from(_OPTIONS), _values).map(lambda pair: ["=".join(pair)]),
    _values.map(lambda value: [value]),
)
_sensible = st.sampled_from(
    [
        ["rerank", "artifact", "--query", "one", "--documents", "documents.txt"],
        ["rerank", "artifact", "--query", "one", "--documents", "documents.jsonl"],
        ["rerank", "artifact", "--query", "one", "--documents", "documents.csv"],
        ["rerank", "artifact", "--queries", "queries.json"],
        ["score", "artifact", "pairs.jsonl"],
        ["prepare", "artifact"],
        *([command] for command in _COMMANDS),
        [],
    ]
)


@settings(max_examples=150, deadline=None)  # loading an artifact takes longer than the deadline of an example
@given(first=_sensible, options=st.lists(_options, max_size=5))
def test_any_arguments_end_with_a_status_and_a_sentence(
    first: list[str], options: list[list[str]], place: Callable[[str], str]
):
    arguments = [*first, *(argument for option in options for argument in option)]
    if "-" in arguments or (first and first[0] not in _COMMANDS):
        return
    output, talk = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(talk):
        status = main([place(argument) for argument in arguments])
    assert status in (0, 1, 2)
    assert "Traceback" not in talk.getvalue() and "This is a mistake" not in talk.getvalue()
    if status != 0:
        assert "error: " in talk.getvalue() or arguments in ([], ["doctor"]) or arguments[0] == "doctor"


def test_the_files_of_the_arguments_are_where_they_are_looked_for(place: Callable[[str], str]):
    assert Path(place("documents.txt")).exists() and place("nowhere") == "nowhere"
