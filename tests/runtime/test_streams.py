"""The standard streams of the command as processes get them, each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rankrt.artifact.manifest import Artifact

RANKRT = [sys.executable, "-m", "rankrt.cli.main"]
Finished = subprocess.CompletedProcess[str]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "one", "passage": "two"}\n' * 500)
    return path


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "documents.txt"
    path.write_text("one café\ntwo \N{GRINNING FACE}\n", encoding="utf-8")
    return path


@pytest.fixture
def rerank(artifact: Artifact, documents: Path) -> list[str]:
    return ["rerank", str(artifact.folder), "--query", "one", "--documents", str(documents), "--no-prepare"]


def run(arguments: Sequence[str], *, environment: dict[str, str] | None = None, **options: Any) -> Finished:
    return subprocess.run(
        [*RANKRT, *arguments],
        env={**os.environ, **(environment or {})},
        encoding="utf-8",
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def shell(arguments: Sequence[str], redirection: str) -> Finished:
    """Run with streams as a shell can leave them: closed, full, or a pipe that nobody reads."""
    command = f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(["bash", "-c", command, "bash", *RANKRT, *arguments], capture_output=True, text=True)


def test_documents_come_from_standard_input(artifact: Artifact):
    arguments = ["rerank", str(artifact.folder), "--query", "one", "--documents", "-", "--json"]
    finished = run(arguments, input="two\nthree\n")
    assert [hit["index"] for hit in json.loads(finished.stdout)["results"]] == [1, 0]


def test_pairs_come_from_a_pipe_that_has_a_name(artifact: Artifact, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["bash", "-c", f'echo \'[{{"query": "one", "passage": "two"}}]\' > {tmp_path}/pipe']):
        finished = run(["score", str(artifact.folder), str(tmp_path / "pipe"), "--no-prepare"])
    assert json.loads(finished.stdout)["score"] == 3.0


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (b'{"query": "one", "passage": "cut \\ud83d"}', "line 501 has half of a character"),
        (b'{"query": "one", "passage": "caf\xe9"}', "line 501 is not UTF-8"),
        (b"oops", "line 501 is not JSON"),
        (b"", "line 501 is blank"),
        (b'{"query": "one", "passage": "nan"}', "answered nan for "),
    ],
)
def test_what_was_scored_before_a_bad_line_is_written(artifact: Artifact, pairs: Path, last: bytes, message: str):
    pairs.write_bytes(pairs.read_bytes() + last + b"\n" + b'{"query": "one", "passage": "two"}\n')
    finished = run(["score", str(artifact.folder), str(pairs), "--no-prepare"])
    assert finished.returncode == 1
    assert finished.stdout == '{"score": 3.0, "truncated": false}\n' * 500
    (error,) = finished.stderr.splitlines()
    assert message in error


def test_an_encoding_that_lacks_a_character_gets_it_escaped(rerank: list[str]):
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    assert "caf\\u00e9" in run(rerank, environment=ascii_only).stdout
    found = json.loads(run([*rerank, "--json"], environment=ascii_only).stdout)
    assert [hit["document"] for hit in found["results"]] == ["two \N{GRINNING FACE}", "one café"]


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_results_come_where_nothing_can_be_said(artifact: Artifact, pairs: Path, redirection: str):
    finished = shell(["score", str(artifact.folder), str(pairs)], redirection)
    assert (finished.returncode, finished.stdout.count("\n")) == (0, 500)


def test_an_error_does_not_go_to_the_results_where_standard_error_is_closed(artifact: Artifact):
    finished = shell(["score", str(artifact.folder), "/no/file"], "2>&-")
    assert (finished.returncode, finished.stdout) == (1, "")


@pytest.mark.parametrize("buffering", ["", "1"])
@pytest.mark.parametrize(
    ("redirection", "message"), [("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_results_that_cannot_be_written_are_a_sentence(
    rerank: list[str], redirection: str, message: str, buffering: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONUNBUFFERED", buffering)
    for arguments in (rerank, ["doctor"]):
        finished = shell(arguments, redirection)
        assert finished.returncode == 1
        assert finished.stderr == f"rankrt: error: writing failed: {message}\n"


def test_standard_input_that_is_closed_is_a_sentence(artifact: Artifact):
    finished = shell(["score", str(artifact.folder), "-", "--no-prepare"], "<&-")
    assert finished.returncode == 1
    assert "rankrt: error: standard input cannot be read: it is closed" in finished.stderr


def test_a_file_that_took_the_number_of_a_closed_standard_input_is_not_read(artifact: Artifact, pairs: Path):
    code = f"file = open({str(pairs)!r}); assert file.fileno() == 0; from rankrt.cli.main import main"
    code += f"; main(['score', {str(artifact.folder)!r}, '-', '--no-prepare'])"
    finished = subprocess.run(
        ["bash", "-c", '"$@" <&-', "bash", sys.executable, "-c", code], capture_output=True, text=True
    )
    assert finished.stdout == ""
    assert "standard input cannot be read: it is closed" in finished.stderr


@pytest.mark.parametrize("buffering", ["", "1"])
def test_a_pipe_whose_reader_has_left_is_exit_status_141(
    artifact: Artifact, pairs: Path, buffering: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONUNBUFFERED", buffering)
    pairs.write_text(pairs.read_text() * 40)
    finished = shell(["score", str(artifact.folder), str(pairs), "--no-prepare"], "| head -n 1")
    assert (finished.returncode, finished.stderr) == (141, "")
    assert json.loads(finished.stdout)["score"] == 3.0


def test_ctrl_c_leaves_what_was_scored_and_exit_status_130(artifact: Artifact, pairs: Path):
    command = [*RANKRT, "score", str(artifact.folder), "-", "--no-prepare"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(pairs.read_bytes())
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["score"] == 3.0
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert process.stdout.read().count(b"\n") == 255  # with the first a block; the next was not full yet
    assert process.stderr.read() == b""
    process.stdin.close()
    process.stdout.close()
    process.stderr.close()


def test_a_terminal_that_is_read_from_is_told_how_to_end(artifact: Artifact):
    keyboard, terminal = os.openpty()
    os.write(keyboard, b"two\n\x04")
    rerank = ["rerank", str(artifact.folder), "--query", "one", "--documents", "-", "--no-prepare"]
    finished = run(rerank, stdin=terminal, timeout=60)
    assert (finished.returncode, finished.stderr) == (0, "rankrt: reading from the terminal; end with Ctrl-D\n")
    assert "two" in finished.stdout
    os.close(keyboard)
    os.close(terminal)


def test_progress_goes_to_a_terminal_only(rerank: list[str]):
    assert run(rerank).stderr == ""
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (24, 80))
    assert run(rerank, stderr=writer).returncode == 0
    os.close(writer)
    assert b"document" in os.read(reader, 65536)
    os.close(reader)
