"""The command line: results on standard output, talk on standard error, one sentence for an error."""

import io
import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import rankrt.extras
from rankrt.artifact import Artifact
from rankrt.cli import main
from tests.support import tiny_artifact

Output = pytest.CaptureFixture[str]


@pytest.fixture
def documents(tmp_path: Path) -> str:
    path = tmp_path / "documents.txt"
    path.write_text("one\n\nthree\ntwo\n")
    return str(path)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "one", "passage": "two"}\n{"query": "one", "passage": "", "label": 1}\n')
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_rerank_prints_a_table(artifact: Artifact, documents: str, capsys: Output):
    assert run("rerank", artifact.folder, "--query", "one", "--documents", documents, "--top-n", "2") == 0
    assert capsys.readouterr().out.split() == ["1", "4.0000", "#2", "three", "2", "3.0000", "#3", "two"]


def test_rerank_prints_json_with_line_numbers(artifact: Artifact, documents: str, capsys: Output):
    run("rerank", artifact.folder, "--query", "one", "--documents", documents, "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["results"][0] == {"index": 2, "score": 4.0, "document": "three", "truncated": False}
    assert (answer["n_documents"], answer["query_truncated"]) == (3, False)


def test_rerank_reads_standard_input(artifact: Artifact, capsys: Output, monkeypatch: pytest.MonkeyPatch):
    process = subprocess.run(
        [sys.executable, "-m", "rankrt.cli", "rerank", artifact.folder, "--query", "one", "--documents", "-", "--json"],
        input=b"two\nthree\n",
        capture_output=True,
        check=True,
    )
    assert [hit["index"] for hit in json.loads(process.stdout)["results"]] == [1, 0]


def test_rerank_reads_json_lines_of_strings_and_objects(artifact: Artifact, tmp_path: Path, capsys: Output):
    path = tmp_path / "documents.jsonl"
    path.write_text('"one\\ntwo"\n{"text": "four", "id": 7}\n')
    assert run("rerank", artifact.folder, "--query", "zero", "--documents", path, "--json") == 0
    assert [hit["document"] for hit in json.loads(capsys.readouterr().out)["results"]] == ["four", "one\ntwo"]


def test_rerank_marks_what_was_truncated(artifact: Artifact, tmp_path: Path, capsys: Output):
    (tmp_path / "long.txt").write_text("one " * 100)
    run("rerank", artifact.folder, "--query", "one", "--documents", tmp_path / "long.txt")
    assert "[truncated]" in capsys.readouterr().out


def test_score_answers_line_by_line(artifact: Artifact, pairs: Path, capsys: Output):
    assert run("score", artifact.folder, pairs) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"score": 3.0, "truncated": False}, {"score": 1.0, "truncated": False}]


def test_score_normalizes_when_asked(artifact: Artifact, tmp_path: Path, capsys: Output):
    (tmp_path / "pairs.jsonl").write_text('{"query": "zero", "passage": "zero"}')
    run("score", artifact.folder, tmp_path / "pairs.jsonl", "--normalize")
    assert json.loads(capsys.readouterr().out)["score"] == 0.5


def test_score_keeps_what_was_scored_before_a_bad_line(
    artifact: Artifact, pairs: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rankrt.cli._BLOCK_PAIRS", 1)
    pairs.write_text(pairs.read_text() + "oops\n")
    assert run("score", artifact.folder, pairs) == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 2
    assert "line 3 is not JSON" in output.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 1 is blank"),
        ("[1, 2]", 'line 1: expected {"query": ..., "passage": ...}'),
        ('{"query": "one"}', "line 1: expected"),
        ('{"query": "", "passage": "two"}', "with a query that is not empty"),
        ('{"query": 1, "passage": "two"}', "line 1: expected"),
    ],
)
def test_score_says_which_line_is_wrong(artifact: Artifact, tmp_path: Path, capsys: Output, line: str, message: str):
    (tmp_path / "pairs.jsonl").write_text(f"{line}\n")
    assert run("score", artifact.folder, tmp_path / "pairs.jsonl") == 1
    assert message in capsys.readouterr().err


def test_an_empty_file_of_pairs_has_no_scores(artifact: Artifact, tmp_path: Path, capsys: Output):
    (tmp_path / "pairs.jsonl").write_text("")
    assert run("score", artifact.folder, tmp_path / "pairs.jsonl") == 0
    assert capsys.readouterr().out == ""


def test_info_shows_what_was_verified(artifact: Artifact, capsys: Output):
    assert run("info", artifact.folder) == 0
    output = capsys.readouterr().out
    assert "tiny: SumOfPoints, up to 64 tokens" in output
    assert "verified on 2 pairs of 1 queries against by hand" in output


def test_info_says_when_nothing_was_verified(tmp_path: Path, capsys: Output):
    run("info", tiny_artifact(tmp_path / "raw", verification=None).folder)
    assert "not verified" in capsys.readouterr().out


def test_info_prints_the_manifest_as_json(artifact: Artifact, capsys: Output):
    assert run("info", artifact.folder, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["identity"] == artifact.identity
    assert answer["variants"][0]["precision"] == "fp32"


def test_doctor_finds_nothing_wrong_with_a_sound_artifact(artifact: Artifact, capsys: Output):
    assert run("doctor", artifact.folder) == 0
    output = capsys.readouterr().out
    assert "4 files have the SHA-256" not in output
    assert "3 files have the SHA-256 they were exported with" in output
    assert "precision='auto' takes cpu-fp32 here" in output
    assert "1 examples scored here differ from PyTorch by up to 0.0e+00" in output


def test_doctor_without_an_artifact_examines_the_host(capsys: Output):
    assert run("doctor", "--json") == 0
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert {"software", "processor", "threads", "engine", "telemetry", "limits", "cache"} == findings.keys()
    assert "onnxruntime" in findings["engine"]["detail"]


def test_doctor_fails_on_a_changed_file(artifact: Artifact, capsys: Output):
    path = artifact.folder / "points.fp32.data"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert run("doctor", artifact.folder) == 1
    assert "is not the file that was exported" in capsys.readouterr().out


def test_doctor_fails_where_scores_differ_from_those_of_the_export_host(artifact: Artifact, capsys: Output):
    path = artifact.folder / "rankrt.json"
    path.write_text(path.read_text().replace('"logit": 6.0', '"logit": 6.01'))
    assert run("doctor", artifact.folder) == 1
    assert "fail  cpu-fp32" in capsys.readouterr().out


def test_doctor_notes_what_was_never_verified(tmp_path: Path, capsys: Output):
    assert run("doctor", tiny_artifact(tmp_path / "raw", verification=None).folder) == 1
    output = capsys.readouterr().out
    assert "has no verified variant for cpu" in output
    assert "nothing to compare with" in output


def test_doctor_on_something_else_fails(tmp_path: Path, capsys: Output):
    assert run("doctor", tmp_path) == 1
    assert "is not a rankrt artifact" in capsys.readouterr().out


def test_doctor_finds_damage_in_the_cache_that_loading_does_not_look_for(
    artifact: Artifact, documents: str, capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rankrt.seals.SMALL_BYTES", 8)
    monkeypatch.setattr("rankrt.seals._SAMPLE_BYTES", 8)
    run("rerank", artifact.folder, "--query", "one", "--documents", documents)
    (graph,) = (tmp_path / "cache").glob("prepared/*/model.onnx")
    content = graph.read_bytes()
    graph.write_bytes(content[:100] + b"\0" * 10 + content[110:])
    assert run("doctor") == 1
    assert "model.onnx has other bytes than were written. Remove it: rankrt cache prune" in capsys.readouterr().out
    assert run("cache", "prune") == 0
    assert run("doctor") == 0


def test_doctor_says_what_the_cache_takes_and_may_take(
    artifact: Artifact, documents: str, capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    run("rerank", artifact.folder, "--query", "one", "--documents", documents)
    run("doctor")
    assert f"{tmp_path / 'cache'}: 1 entries, 0.00 GB, no limit" in capsys.readouterr().out
    monkeypatch.setenv("RANKRT_CACHE_MAX", "20GB")
    run("doctor")
    assert "limit 20.00 GB" in capsys.readouterr().out
    monkeypatch.setenv("RANKRT_CACHE_MAX", "much")
    assert run("doctor") == 1
    assert "RANKRT_CACHE_MAX='much' is not a size" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "verdict"), [("1", "ok"), ("true", "ok"), ("0", "note"), ("", "note"), (None, "note")]
)
def test_doctor_says_whether_the_engine_reports_to_its_maker(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, value: str | None, verdict: str
):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if value is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value)
    run("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["telemetry"]["verdict"] == verdict
    assert "open files" in findings["limits"]["detail"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rerank", "ARTIFACT", "--query", " ", "--documents", "DOCUMENTS"], "the query is empty"),
        (["rerank", "ARTIFACT", "--query", "one", "--documents", "/no/file"], "/no/file cannot be read: No such file"),
        (["rerank", "/no/artifact", "--query", "one", "--documents", "DOCUMENTS"], "/no/artifact does not exist"),
        (
            ["rerank", "ARTIFACT", "--query", "one", "--documents", "DOCUMENTS", "--max-length", "99"],
            "at most 64 tokens",
        ),
        (["rerank", "ARTIFACT", "--query", "one", "--documents", "DOCUMENTS", "--top-n", "-1"], "top_n=-1"),
        (["rerank", "ARTIFACT", "--query", "one", "--documents", "DOCUMENTS", "--precision", "fp16"], "has no fp16"),
        (["info", "/no/artifact"], "is not a rankrt artifact"),
        (["score", "ARTIFACT", "/no/file"], "/no/file cannot be read"),
    ],
)
def test_an_error_is_one_sentence_and_exit_status_one(
    artifact: Artifact, documents: str, capsys: Output, arguments: list[str], message: str
):
    places = {"ARTIFACT": str(artifact.folder), "DOCUMENTS": documents}
    assert main([places.get(argument, argument) for argument in arguments]) == 1
    (error,) = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("rankrt: preparing"))
    assert error.startswith("rankrt: error: ")
    assert message in error


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["rerank", "x"], ["cache", "eat"]])
def test_wrong_usage_is_exit_status_two(arguments: list[str], capsys: Output):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: rankrt" in capsys.readouterr().err


def test_help_lists_all_commands(capsys: Output):
    with pytest.raises(SystemExit):
        main(["--help"])
    output = capsys.readouterr().out
    assert all(command in output for command in ["export", "rerank", "score", "info", "doctor", "cache"])


def test_a_command_whose_extra_is_missing_says_which_pip_command_brings_it(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    module = tmp_path / "needy_command.py"
    module.write_text("def add_arguments(parser): pass\ndef run(options): import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("export", "needy_command", "rankrt.commands")
    monkeypatch.setattr(rankrt.extras, "entry_points", lambda group: [point])
    assert main(["export"]) == 1
    error = capsys.readouterr().err
    assert error == "rankrt: error: rankrt export needs no_such_module: pip install 'rankrt[cpu,export]'\n"


def test_a_closed_pipe_is_no_error(artifact: Artifact, pairs: Path):
    pairs.write_text(pairs.read_text() * 20_000)
    command = f"{sys.executable} -m rankrt.cli score {artifact.folder} {pairs} | head -n 1"
    process = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert json.loads(process.stdout)["score"] == 3.0


def test_progress_goes_to_a_terminal_only(artifact: Artifact, pairs: Path, capsys: Output):
    assert not io.StringIO().isatty()
    run("score", artifact.folder, pairs)
    assert "pair" not in capsys.readouterr().err
