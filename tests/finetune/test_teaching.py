"""A teacher's scores, and a file that is the same whether its maker was interrupted or not."""

import json
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from rankrt import InputError, Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.cli.main import main
from rankrt_finetune.data.examples import read_examples
from rankrt_finetune.resuming import write_blocks
from rankrt_finetune.teaching import teach
from tests.finetune.conftest import write_lines

WORDS = ["zero", "one", "two", "three", "four"]


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Two hundred examples, which are four blocks, of the words that the tiny artifact knows."""
    rows = [
        {"query": a, "pos": [f"{b} {c}"], "neg": [f"{c} {c} {d}", b], "id": f"{a}{b}{c}{d}"}
        for a, b, c, d in list(product(WORDS, repeat=4))[:200]
    ]
    return write_lines(tmp_path / "mined.jsonl", rows)


class Stopped(Exception):
    """Stands for a kill: nothing after it runs."""


def stop_after(n_examples: int) -> Callable[[int], None]:
    seen = 0

    def on_progress(n: int) -> None:
        nonlocal seen
        seen += n
        if seen >= n_examples:
            raise Stopped

    return on_progress


def test_each_passage_gets_the_logit_that_score_gives_it(examples: Path, reranker: Reranker, tmp_path: Path):
    teach(examples, reranker, tmp_path / "taught.jsonl")
    taught = list(read_examples(tmp_path / "taught.jsonl"))
    assert [example.fields for example in taught] == [example.fields for example in read_examples(examples)]
    for example in taught:
        expected = reranker.score([(example.query, passage) for passage in example.passages])
        assert example.scores == tuple(expected.tolist())


def test_an_interrupted_file_is_continued_to_the_same_bytes(examples: Path, reranker: Reranker, tmp_path: Path):
    teach(examples, reranker, tmp_path / "whole.jsonl")
    with pytest.raises(Stopped):
        teach(examples, reranker, tmp_path / "taught.jsonl", on_progress=stop_after(128))
    assert not (tmp_path / "taught.jsonl").exists()
    lines = tmp_path / ".unfinished-taught.jsonl" / "lines"
    with lines.open("a") as file:  # half a line, as a process leaves that is killed while it writes
        file.write('{"query": "ze')
    n_scored: list[int] = []
    teach(examples, reranker, tmp_path / "taught.jsonl", on_progress=n_scored.append)
    assert n_scored[0] == 128
    assert (tmp_path / "taught.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert {path.name for path in tmp_path.glob(".*")} == set()


def test_a_file_that_was_begun_from_another_input_is_not_continued(examples: Path, reranker: Reranker, tmp_path: Path):
    with pytest.raises(Stopped):
        teach(examples, reranker, tmp_path / "taught.jsonl", on_progress=stop_after(64))
    with examples.open("a") as file:
        file.write('{"query": "one", "pos": ["two"], "neg": []}\n')
    with pytest.raises(InputError, match=r"begun with another input, and is not finished.*remove .*unfinished-taught"):
        teach(examples, reranker, tmp_path / "taught.jsonl")


def test_a_file_that_exists_or_is_being_made_is_refused(tmp_path: Path):
    (tmp_path / "there").write_text("mine")
    with pytest.raises(InputError, match="there exists"):
        write_blocks(tmp_path / "there", made_from={}, block_size=1, make=lambda n, folder: iter([]))

    def make_again(n_blocks: int, folder: Path) -> Iterator[list[str]]:
        with pytest.raises(InputError, match="being made by another process"):
            write_blocks(tmp_path / "new", made_from={}, block_size=1, make=lambda n, folder: iter([]))
        yield ["line"]

    write_blocks(tmp_path / "new", made_from={}, block_size=1, make=make_again)
    assert (tmp_path / "new").read_text() == "line\n"


def test_the_command_writes_the_file(examples: Path, artifact: Artifact, tmp_path: Path):
    out = tmp_path / "taught.jsonl"
    assert main(["teach", str(examples), "--teacher", str(artifact.folder), "-o", str(out)]) == 0
    assert json.loads(out.read_text().splitlines()[7])["neg_scores"] == [4.0, 0.0]


def test_the_command_names_the_line_that_is_no_example(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bad = write_lines(tmp_path / "bad.jsonl", [{"query": "one", "pos": ["two"], "pos_scores": [1, 2], "neg": []}])
    assert main(["teach", str(bad), "--teacher", str(artifact.folder), "-o", str(tmp_path / "out")]) == 1
    assert re.search(r"bad\.jsonl, line 1: pos_scores has 2 numbers, but pos has 1", capsys.readouterr().err)
