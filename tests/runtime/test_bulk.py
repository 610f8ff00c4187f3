"""`rankrt score` on files: formats in and out, the best of each query, and jobs that are killed and continued."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import InputError
from rankrt.artifact.manifest import Artifact
from rankrt.cli import terminal
from rankrt.cli.bulk.checkpoint import open_checkpoint
from rankrt.cli.bulk.chunks import Names
from rankrt.cli.bulk.columns import read_columns
from rankrt.cli.main import main
from tests.support import calibrate, tiny_artifact

Output = pytest.CaptureFixture[str]
WORDS = ["zero", "one", "two", "three", "four"]
PAIRS = [{"id": i, "query": f"one {i // 4}", "passage": WORDS[i * 7 % 5], "part": i / 4} for i in range(12)]
SCORES = [1.0 + i * 7 % 5 for i in range(12)]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def write_lines(path: Path, pairs: Any = PAIRS) -> Path:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def pa() -> Any:
    return pytest.importorskip("pyarrow", reason="needs the extra parquet")


def write_table(pa: Any, path: Path, table: Any = None) -> Path:
    from pyarrow import feather, parquet

    table = pa.Table.from_pylist(PAIRS) if table is None else table
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=5)
    else:
        feather.write_feather(table, path)
    return path


def read_table(path: Path) -> Any:
    from pyarrow import feather, parquet

    return parquet.read_table(path) if path.suffix == ".parquet" else feather.read_table(path)


@pytest.mark.parametrize("out", ["scores.jsonl", "scores.csv"])
def test_a_file_has_the_bytes_that_standard_output_gets(artifact: Artifact, tmp_path: Path, capsys: Output, out: str):
    pairs, format = write_lines(tmp_path / "pairs.jsonl"), out.partition(".")[2]
    assert run("score", artifact.folder, pairs, "--output-format", format) == 0
    printed = capsys.readouterr().out
    assert run("score", artifact.folder, pairs, "--out", tmp_path / out) == 0
    assert (tmp_path / out).read_bytes() == printed.encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl", out, "tiny"]  # and nothing is left


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_columns_keep_their_types(artifact: Artifact, tmp_path: Path, pa: Any, ending: str):
    moments = pa.array([1_700_000_000_123_456_789 + i for i in range(12)], pa.timestamp("ns"))
    table = pa.Table.from_pylist(PAIRS).append_column("at", moments).append_column("score", pa.array(range(12)))
    pairs, out = write_table(pa, tmp_path / f"pairs.{ending}", table), tmp_path / f"scores.{ending}"
    assert run("score", artifact.folder, pairs, "--out", out) == 0
    found = read_table(out)
    assert found.column_names == ["score", "truncated", "id", "part", "at", "input_score"]
    assert found.column("at") == table.column("at")
    assert (found.schema.field("score").type, found.column("score").to_pylist()) == (pa.float32(), SCORES)


@pytest.mark.parametrize(("given", "out"), [("jsonl", "parquet"), ("parquet", "jsonl"), ("arrow", "csv")])
def test_any_format_becomes_any_other(artifact: Artifact, tmp_path: Path, pa: Any, given: str, out: str):
    path = tmp_path / f"pairs.{given}"
    pairs = write_lines(path) if given == "jsonl" else write_table(pa, path)
    assert run("score", artifact.folder, pairs, "--out", tmp_path / f"scores.{out}", "--keep-text") == 0
    if out == "parquet":
        found = read_table(tmp_path / "scores.parquet").to_pylist()
    elif out == "jsonl":
        found = lines_of(tmp_path / "scores.jsonl")
    else:
        assert (tmp_path / "scores.csv").read_text().splitlines()[1] == "1.0,false,0,one 0,zero,0.0"
        return
    assert found == [{"score": s, "truncated": False, **pair} for s, pair in zip(SCORES, PAIRS, strict=True)]


def test_parquet_is_known_by_how_it_begins_and_read_to_standard_output(
    artifact: Artifact, tmp_path: Path, pa: Any, capsys: Output
):
    pairs = write_table(pa, tmp_path / "pairs.parquet").rename(tmp_path / "pairs.data")
    assert run("score", artifact.folder, pairs) == 0
    assert [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()] == SCORES


def test_a_stream_of_arrow_is_read(artifact: Artifact, tmp_path: Path, pa: Any, capsys: Output):
    table = pa.Table.from_pylist(PAIRS)
    with pa.ipc.new_stream(tmp_path / "pairs.arrow", table.schema) as stream:
        stream.write_table(table)
    assert run("score", artifact.folder, tmp_path / "pairs.arrow") == 0
    assert len(capsys.readouterr().out.splitlines()) == 12


def test_the_best_of_each_query_come_first_with_their_lines(artifact: Artifact, tmp_path: Path):
    pairs = write_lines(tmp_path / "pairs.jsonl")
    assert run("score", artifact.folder, pairs, "--out", tmp_path / "best.jsonl", "--top-n", 2) == 0
    found = lines_of(tmp_path / "best.jsonl")
    expected = [i for first in (0, 4, 8) for i in sorted(range(first, first + 4), key=lambda i: -SCORES[i])[:2]]
    assert [hit["index"] for hit in found] == [hit["id"] for hit in found] == expected
    assert [hit["rank"] for hit in found] == [1, 2] * 3


def test_the_best_of_a_query_are_found_across_chunks(artifact: Artifact, tmp_path: Path, pa: Any):
    """700 pairs of one query and one of another, in chunks of 256."""
    rows = [{"query": "one", "passage": WORDS[i % 4], "id": i} for i in range(700)]
    rows[650]["passage"] = "four"
    rows.append({"query": "two", "passage": "zero", "id": 700})
    best: list[list[int]] = []
    for ending in ("jsonl", "parquet"):
        path, out = tmp_path / f"pairs.{ending}", tmp_path / f"best.{ending}"
        pairs = write_lines(path, rows) if ending == "jsonl" else write_table(pa, path, pa.Table.from_pylist(rows))
        assert run("score", artifact.folder, pairs, "--out", out, "--top-n", 3) == 0
        found = lines_of(out) if ending == "jsonl" else read_table(out).to_pylist()
        best.append([hit["id"] for hit in found])
    assert best == [[650, 3, 7, 700]] * 2


def test_a_query_that_comes_again_is_refused_for_the_best_of_each(artifact: Artifact, tmp_path: Path, capsys: Output):
    pairs = write_lines(tmp_path / "pairs.jsonl", [*PAIRS[:4], *PAIRS[8:], PAIRS[0]])
    assert run("score", artifact.folder, pairs, "--top-n", 1) == 1
    assert "pairs.jsonl, line 9: this query has pairs further up" in capsys.readouterr().err
    assert run("score", artifact.folder, pairs) == 0


def test_a_threshold_leaves_pairs_out_and_tells_the_lines_of_the_others(
    artifact: Artifact, tmp_path: Path, capsys: Output
):
    calibrate(artifact)
    pairs = write_lines(tmp_path / "pairs.jsonl")
    assert run("score", artifact.folder, pairs, "--calibrated", "--score-threshold", 0.5) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [hit["index"] for hit in found] == [i for i, score in enumerate(SCORES) if score >= 3]


def test_columns_and_keys_have_the_names_that_are_given(artifact: Artifact, tmp_path: Path, pa: Any, capsys: Output):
    renamed = pa.Table.from_pylist(PAIRS).rename_columns(["id", "question", "text", "part"])
    names = ["--query-column", "question", "--passage-column", "text"]
    assert run("score", artifact.folder, write_table(pa, tmp_path / "pairs.parquet", renamed), *names) == 0
    as_lines = write_lines(tmp_path / "pairs.jsonl", renamed.to_pylist())
    assert run("score", artifact.folder, as_lines, *names) == 0
    assert len(capsys.readouterr().out.splitlines()) == 24
    assert run("score", artifact.folder, as_lines) == 1
    assert 'expected {"query": ..., "passage": ...}' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pa, t: t.drop_columns(["query"]), r"no column 'query'. It has: id \(int64\), passage \(string\)"),
        (lambda pa, t: t.set_column(1, "query", pa.array(range(12))), "column 'query' holds int64, expected text"),
        (lambda pa, t: t.set_column(2, "passage", pa.array(["x", None] * 6)), "row 2: column 'passage' is empty"),
        (lambda pa, t: t.set_column(1, "query", pa.array(["x"] * 9 + [" "] * 3)), "row 10: column 'query' is empty"),
    ],
)
def test_wrong_columns_are_named_beside_those_that_are_there(tmp_path: Path, pa: Any, change, message: str):
    path = write_table(pa, tmp_path / "pairs.parquet", change(pa, pa.Table.from_pylist(PAIRS)))
    with pytest.raises(InputError, match=message):
        for chunk in read_columns(str(path), "parquet", Names(), 4, has_all=True):
            assert len(chunk.pairs) == len(chunk)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"PAR1 and then nothing", "pairs.parquet", "pairs.parquet cannot be read"),
        (b"ARROW1\0\0", "pairs.arrow", "pairs.arrow cannot be read"),
        (b"", "pairs.parquet", "pairs.parquet cannot be read"),
    ],
)
def test_a_damaged_file_is_one_sentence(
    artifact: Artifact, tmp_path: Path, pa: Any, capsys: Output, content, name, message
):
    (tmp_path / name).write_bytes(content)
    assert run("score", artifact.folder, tmp_path / name) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_type_that_lines_cannot_hold_is_refused(artifact: Artifact, tmp_path: Path, pa: Any, capsys: Output):
    table = pa.Table.from_pylist(PAIRS).append_column("day", pa.array([0] * 12, pa.date32()))
    assert run("score", artifact.folder, write_table(pa, tmp_path / "pairs.parquet", table)) == 1
    assert "column 'day' holds date32[day], which lines of text cannot hold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.txt"], "the name of x.txt tells no format; end it with .jsonl"),
        (["--output-format", "parquet"], "parquet is not written to standard output; name a file with --out"),
        (["--query-column", "passage"], "--query-column and --passage-column are both 'passage'"),
        (["--out", "FOLDER/none/x.jsonl"], "none is not a folder"),
        (["--out", "FOLDER/pairs.jsonl"], "pairs.jsonl exists; remove it or choose another name"),
        (["--normalize", "--score-threshold", "3"], "--score-threshold 3 is not between 0 and 1"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_scored(
    artifact: Artifact, tmp_path: Path, capsys: Output, options: list[str], message: str
):
    pairs = write_lines(tmp_path / "pairs.jsonl")
    assert run("score", artifact.folder, pairs, *(o.replace("FOLDER", str(tmp_path)) for o in options)) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with a name")
def test_a_stream_cannot_be_scored_into_a_file(artifact: Artifact, tmp_path: Path, capsys: Output):
    os.mkfifo(tmp_path / "pairs.jsonl")
    for pairs in ("-", tmp_path / "pairs.jsonl"):
        assert run("score", artifact.folder, pairs, "--out", tmp_path / "scores.jsonl") == 1
        assert "--out needs a file of pairs, which is read more than once" in capsys.readouterr().err


def test_a_bad_line_of_a_long_file_is_found_before_anything_is_scored(
    artifact: Artifact, tmp_path: Path, capsys: Output
):
    pairs = write_lines(tmp_path / "pairs.jsonl", [*PAIRS * 50, {"query": "one"}])
    assert run("score", artifact.folder, pairs, "--out", tmp_path / "scores.jsonl") == 1
    assert "pairs.jsonl, line 601: expected" in capsys.readouterr().err
    assert not (tmp_path / "scores.jsonl.unfinished").exists()


def test_an_empty_file_gives_an_empty_one(artifact: Artifact, tmp_path: Path, pa: Any, capsys: Output):
    for name in ("scores.jsonl", "scores.parquet"):
        assert run("score", artifact.folder, write_lines(tmp_path / "no.jsonl", []), "--out", tmp_path / name) == 0
    assert (tmp_path / "scores.jsonl").read_bytes() == b""
    assert read_table(tmp_path / "scores.parquet").num_rows == 0


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A file of 40,000 pairs, which take the tiny model some seconds."""
    return write_lines(
        tmp_path / "long.jsonl",
        ({"query": f"one {i // 10}", "passage": f"{WORDS[i % 5]} " * (i % 7), "id": i} for i in range(40_000)),
    )


def killed(command: list[str], checkpoint: Path) -> None:
    """Start a command, and kill it -9 when some of its scores are in the checkpoint."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not checkpoint.exists() or checkpoint.stat().st_size < 10_000:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no kill -9")
@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_job_that_was_killed_continues_and_ends_with_the_same_bytes(
    artifact: Artifact, tmp_path: Path, long: Path, capsys: Output, n_processes: int
):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "scores.jsonl"
    assert run("score", artifact.folder, long, "--out", whole, "--top-n", 3) == 0
    arguments = ["score", str(artifact.folder), str(long), "--out", str(out), "--top-n", "3"]
    arguments += ["--processes", str(n_processes)]
    checkpoint = tmp_path / "scores.jsonl.unfinished"
    for _ in range(2):  # the second one begins where the first one was killed
        killed([sys.executable, "-m", "rankrt.cli.main", *arguments], checkpoint)
    assert not out.exists() and checkpoint.stat().st_size < 5 * 40_000
    capsys.readouterr()
    assert main(arguments) == 0
    n_scored = int(capsys.readouterr().err.partition("scored ")[2].partition(" pairs")[0].replace(",", ""))
    assert n_scored < 40_000 - 1_000
    assert out.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()


def test_a_job_without_a_terminal_says_its_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: Output):
    monkeypatch.setattr(terminal, "_LINE_S", 0.0)
    with terminal.progress(1000, 200, "pair") as update:
        time.sleep(0.1)
        update(400)
    said, done = capsys.readouterr().err.splitlines()
    found = re.fullmatch(r"rankrt: 600 of 1,000 pairs, ([\d,.]+) a second, 00:00 left", said)
    assert found is not None and float(found[1].replace(",", "")) <= 4000  # the 200 of before do not count
    assert done.startswith("rankrt: scored 400 pairs in 00:0")


def test_a_block_that_was_cut_short_or_damaged_is_scored_again(tmp_path: Path):
    path, logits = tmp_path / "checkpoint", np.arange(4, dtype=np.float32)
    for end in (b"\x04\0\0\0 cut", b"\x01\0\0\0" + b"wrong sum"):
        with pytest.raises(KeyboardInterrupt), open_checkpoint(path, {"the job": 1}) as checkpoint:
            checkpoint.append(logits, logits > 2)
            raise KeyboardInterrupt
        with path.open("ab") as file:
            file.write(end)
        with open_checkpoint(path, {"the job": 1}) as checkpoint:
            assert checkpoint.n_pairs == 4
            checkpoint.append(logits + 4, logits > 9)
            blocks = list(checkpoint.blocks())
        assert np.concatenate([found for found, _ in blocks]).tolist() == list(range(8))
        assert [found.tolist() for _, found in blocks] == [[False, False, False, True], [False] * 4]
        assert not path.exists()


def test_a_checkpoint_of_another_job_is_refused(artifact: Artifact, tmp_path: Path, capsys: Output):
    pairs, out = write_lines(tmp_path / "pairs.jsonl"), tmp_path / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt), open_checkpoint(Path(f"{out}.unfinished"), {"the artifact": "other"}):
        raise KeyboardInterrupt
    assert run("score", artifact.folder, pairs, "--out", out) == 1
    assert "scores.jsonl.unfinished was begun with the artifact 'other', but now it is" in capsys.readouterr().err


def test_two_jobs_for_one_output_are_refused(tmp_path: Path):
    with (
        open_checkpoint(tmp_path / "checkpoint", {}),
        pytest.raises(InputError, match="in use: another process"),
        open_checkpoint(tmp_path / "checkpoint", {}),
    ):
        pass


def test_several_processes_give_the_scores_of_one(tmp_path: Path, capsys: Output):
    """Words of the query count in each row; NaN names the line, and what came before is printed."""
    folder = tiny_artifact(tmp_path / "tiny").folder
    pairs = write_lines(tmp_path / "pairs.jsonl", PAIRS * 50)
    assert run("score", folder, pairs) == 0
    expected = capsys.readouterr().out
    assert run("score", folder, pairs, "--processes", 2) == 0
    assert capsys.readouterr().out == expected
    write_lines(pairs, [*PAIRS * 50, {"query": "one", "passage": "nan"}])
    assert run("score", folder, pairs, "--processes", 2) == 1
    assert "pairs.jsonl, line 601" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads children from /proc")
def test_a_process_that_is_killed_is_told_and_leaves_the_scores(artifact: Artifact, tmp_path: Path, long: Path):
    command = [sys.executable, "-m", "rankrt.cli.main", "score", str(artifact.folder), str(long)]
    command += ["--out", str(tmp_path / "scores.jsonl"), "--processes", "2"]
    checkpoint = tmp_path / "scores.jsonl.unfinished"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not checkpoint.exists() or checkpoint.stat().st_size < 10_000:
            time.sleep(0.001)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "one of the processes was ended from outside" in error and error.count("\n") == 1
    assert checkpoint.exists()
