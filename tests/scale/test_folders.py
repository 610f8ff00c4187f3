"""`rankrt score` over a folder of files with columns: one job, one checkpoint, a file of scores for each file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rankrt.artifact.manifest import Artifact
from rankrt.cli.main import main
from tests.scale.conftest import WORDS

pa: Any = pytest.importorskip("pyarrow", reason="needs the extra parquet")
Output = pytest.CaptureFixture[str]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def write(path: Path, n: int, *, query: str = "one") -> Path:
    from pyarrow import feather, parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    passages = [" ".join([WORDS[i * 7 % 5]] * (1 + i % 9)) for i in range(n)]
    table = pa.table({"id": list(range(n)), "query": [query] * n, "passage": passages})
    parquet.write_table(table, path) if path.suffix == ".parquet" else feather.write_feather(table, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of 700 pairs in all, which end within chunks of 256; another program's marks stand beside them."""
    for name, n in {"a.parquet": 300, "day=1/b.parquet": 7, "day=2/c.arrow": 393}.items():
        write(tmp_path / "pairs" / name, n)
    (tmp_path / "pairs" / "_SUCCESS").touch()
    (tmp_path / "pairs" / "_temporary.parquet").write_text("unfinished")
    return tmp_path / "pairs"


def test_each_file_becomes_the_file_that_it_would_alone(artifact: Artifact, folder: Path, tmp_path: Path):
    assert run("score", artifact.folder, folder, "--out", tmp_path / "scores") == 0
    names = ["a.parquet", "day=1/b.parquet", "day=2/c.arrow"]
    found = [path for path in sorted((tmp_path / "scores").rglob("*")) if path.is_file()]
    assert [path.relative_to(tmp_path / "scores").as_posix() for path in found] == names
    for name in names:
        alone = tmp_path / f"alone{Path(name).suffix}"
        assert run("score", artifact.folder, folder / name, "--out", alone) == 0
        assert alone.read_bytes() == (tmp_path / "scores" / name).read_bytes()
        alone.unlink()
    assert not list(tmp_path.glob("*unfinished*")), "nothing is left beside them"


def test_a_format_may_be_another_one(artifact: Artifact, folder: Path, tmp_path: Path, capsys: Output):
    assert run("score", artifact.folder, folder, "--out", tmp_path / "scores", "--output-format", "csv") == 0
    assert (tmp_path / "scores" / "day=2" / "c.csv").read_text().count("\n") == 394
    write(folder / "a.arrow", 1)
    assert run("score", artifact.folder, folder, "--out", tmp_path / "other", "--output-format", "csv") == 1
    assert "two files of" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_damaged_file_is_named_before_anything_is_scored(
    artifact: Artifact, folder: Path, tmp_path: Path, capsys: Output
):
    content = (folder / "day=1" / "b.parquet").read_bytes()
    (folder / "day=1" / "b.parquet").write_bytes(content[: len(content) // 2])
    assert run("score", artifact.folder, folder, "--out", tmp_path / "scores") == 1
    error = capsys.readouterr().err
    assert "day=1/b.parquet cannot be read" in error
    assert not list(tmp_path.glob("*scores*"))


def test_so_is_one_with_damage_in_a_column_that_is_only_written(
    artifact: Artifact, folder: Path, tmp_path: Path, capsys: Output
):
    from pyarrow import parquet

    path = folder / "day=1" / "b.parquet"
    ids = parquet.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    end = ids.dictionary_page_offset + ids.total_compressed_size
    content[ids.data_page_offset : end] = bytes(end - ids.data_page_offset)
    path.write_bytes(content)
    assert run("score", artifact.folder, folder, "--out", tmp_path / "scores") == 1
    assert "day=1/b.parquet cannot be read" in capsys.readouterr().err
    assert not list(tmp_path.glob("*scores*")), "nothing was scored"


def test_the_best_of_each_query_need_its_pairs_in_one_file(
    artifact: Artifact, folder: Path, tmp_path: Path, capsys: Output
):
    assert run("score", artifact.folder, folder, "--out", tmp_path / "scores", "--top-n", 2) == 1
    assert "day=1/b.parquet, row 1: this query has pairs further up" in capsys.readouterr().err
    for i, path in enumerate(["a.parquet", "day=1/b.parquet", "day=2/c.arrow"]):
        write(folder / path, 9, query=WORDS[i])
    assert run("score", artifact.folder, folder, "--out", tmp_path / "scores", "--top-n", 2) == 0
    from pyarrow import parquet

    assert parquet.read_table(tmp_path / "scores" / "a.parquet")["rank"].to_pylist() == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "is a folder; name the folder for its scores with --out"),
        (["--out", "pairs"], "exists; remove it or choose another name"),
    ],
)
def test_a_folder_needs_another_folder(
    artifact: Artifact, folder: Path, arguments: list[str], said: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder.parent)
    assert run("score", artifact.folder, folder, *arguments) == 1
    assert said in capsys.readouterr().err


def test_a_folder_without_columns_says_what_it_should_have(artifact: Artifact, tmp_path: Path, capsys: Output):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "a.jsonl").touch()
    assert run("score", artifact.folder, tmp_path / "pairs", "--out", tmp_path / "scores") == 1
    assert "has no files that end with .parquet, .arrow or .feather" in capsys.readouterr().err


def test_a_job_that_was_killed_continues_unless_the_folder_has_changed(
    artifact: Artifact, folder: Path, tmp_path: Path, capsys: Output
):
    for number in range(4):
        write(folder / f"large-{number}.parquet", 20_000)
    arguments = ["score", str(artifact.folder), str(folder), "--out"]
    checkpoint = tmp_path / "scores.unfinished"
    command = [sys.executable, "-m", "rankrt", *arguments, str(tmp_path / "scores")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not checkpoint.exists() or checkpoint.stat().st_size < 50_000:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
    assert checkpoint.exists() and not (tmp_path / "scores").exists()
    left = tmp_path / ".unfinished-scores-0"
    left.mkdir()  # as of a process that was killed while it wrote
    moved = (folder / "a.parquet").rename(tmp_path / "a.parquet")
    assert run(*arguments, tmp_path / "scores") == 1
    assert "was begun with files with this digest" in capsys.readouterr().err
    moved.rename(folder / "a.parquet")
    assert run(*arguments, tmp_path / "scores") == 0
    assert run(*arguments, tmp_path / "whole") == 0
    for path in (tmp_path / "whole").rglob("*.parquet"):
        assert (tmp_path / "scores" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert not checkpoint.exists() and not left.exists()
