"""The command line: results on standard output, talk on standard error, one sentence for an error."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from rankrt import Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.cli.arguments import in_words_of_options
from rankrt.cli.main import main
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
    assert capsys.readouterr().out.split("\n") == [
        "  1     4.0000  line 3      three",
        "  2     3.0000  line 4      two",
        "",
    ]


def test_rerank_prints_json_with_line_numbers(artifact: Artifact, documents: str, capsys: Output):
    run("rerank", artifact.folder, "--query", "one", "--documents", documents, "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["results"][0] == {"index": 2, "score": 4.0, "document": "three", "truncated": False}
    assert (answer["n_documents"], answer["query_truncated"]) == (3, False)


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
    assert lines == [{"score": 3.0, "truncated": False}, {"score": 1.0, "truncated": False, "label": 1}]


def test_score_normalizes_when_asked(artifact: Artifact, tmp_path: Path, capsys: Output):
    (tmp_path / "pairs.jsonl").write_text('{"query": "zero", "passage": "zero"}')
    run("score", artifact.folder, tmp_path / "pairs.jsonl", "--normalize")
    assert json.loads(capsys.readouterr().out)["score"] == 0.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 1 is blank"),
        ("[1, 2]", 'item 1: expected {"query": ..., "passage": ...}'),
        ("7", 'line 1: expected {"query": ..., "passage": ...}'),
        ('{"query": "one"}', "line 1: expected"),
        ('{"query": "", "passage": "two"}', "with a query that is not empty"),
        ('{"query": 1, "passage": "two"}', "line 1: expected"),
    ],
)
def test_score_says_which_line_is_wrong(artifact: Artifact, tmp_path: Path, capsys: Output, line: str, message: str):
    (tmp_path / "pairs.jsonl").write_text(f"{line}\n")
    assert run("score", artifact.folder, tmp_path / "pairs.jsonl") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("output", ["jsonl", "csv"])
def test_an_empty_file_of_pairs_has_no_scores(artifact: Artifact, tmp_path: Path, capsys: Output, output: str):
    (tmp_path / "pairs.jsonl").write_text("")
    assert run("score", artifact.folder, tmp_path / "pairs.jsonl", "--output-format", output) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "pairs.jsonl has no pairs, so there is nothing to score" in captured.err


def test_an_empty_file_of_documents_has_an_empty_ranking(artifact: Artifact, tmp_path: Path, capsys: Output):
    (tmp_path / "documents.txt").write_text("\n")
    assert run("rerank", artifact.folder, "--query", "one", "--documents", tmp_path / "documents.txt", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["results"] == []
    assert "documents.txt has no documents" in captured.err


def test_score_reads_and_writes_csv(artifact: Artifact, tmp_path: Path, capsys: Output):
    (tmp_path / "pairs.csv").write_text("id,query,passage\n7,one,two\n8,one,three\n")
    assert run("score", artifact.folder, tmp_path / "pairs.csv", "--output-format", "csv") == 0
    assert capsys.readouterr().out == "score,truncated,id\n3.0,false,7\n4.0,false,8\n"


def test_a_field_that_csv_has_no_column_for_is_an_error(artifact: Artifact, pairs: Path, capsys: Output):
    assert run("score", artifact.folder, pairs, "--output-format", "csv") == 1
    assert "'label' is not in every record" in capsys.readouterr().err


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
    examined = {"software", "processor", "threads", "onnxruntime", "telemetry", "limits", "cache", "kernels", "bf16"}
    assert examined == findings.keys()
    assert "onnxruntime" in findings["onnxruntime"]["detail"]


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
    monkeypatch.setattr("rankrt.files.seals.SMALL_BYTES", 8)
    monkeypatch.setattr("rankrt.files.seals._SAMPLE_BYTES", 8)
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


def test_several_queries_share_documents_or_bring_their_own(
    artifact: Artifact, documents: str, tmp_path: Path, capsys: Output
):
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"query": "one", "id": "a"}\n{"query": "two", "id": "b"}\n')
    rerank = ["rerank", artifact.folder, "--queries", queries, "--top-n", "1", "--output-format"]
    assert run(*rerank, "trec", "--documents", documents) == 0
    assert capsys.readouterr().out == "a Q0 2 1 4.0 rankrt\nb Q0 2 1 5.0 rankrt\n"
    queries.write_text(
        '{"query": "one", "documents": ["two", {"text": "four", "id": 7}]}\n{"query": "two", "documents": []}'
    )
    assert run(*rerank, "json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["query"], second["query"], second["results"]) == ("one", "two", [])
    assert first["results"] == [{"index": 1, "score": 5.0, "document": "four", "truncated": False, "id": 7}]


def test_rankings_are_written_as_csv_and_as_json_lines(artifact: Artifact, tmp_path: Path, capsys: Output):
    path = tmp_path / "documents.csv"
    path.write_text('id,text\nx,"one\ntwo"\ny,four\n')
    rerank = ["rerank", artifact.folder, "--query", "zero", "--documents", path, "--output-format"]
    assert run(*rerank, "csv") == 0
    assert capsys.readouterr().out == (
        'rank,index,score,document,truncated,id\n1,1,4.0,four,false,y\n2,0,3.0,"one\ntwo",false,x\n'
    )
    assert run(*rerank, "jsonl", "--top-n", "1") == 0
    assert json.loads(capsys.readouterr().out)["id"] == "y"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--query", "one"], "--query has no documents; give --documents FILE"),
        (["--query", "\udce9", "--documents", "DOCUMENTS"], "--query '\\udce9' is not UTF-8"),
        (["--queries", "-", "--documents", "-"], "both standard input, which can be read only once"),
        (["--queries", "OWN", "--documents", "DOCUMENTS"], 'own.jsonl, line 1 has "documents" of its own'),
        (["--queries", "OWN", "--column", "text"], "--column and --format are for the file of --documents"),
        (["--queries", "DOCUMENTS"], "documents.txt, line 1 has no documents"),
        (["--queries", "BLANK", "--documents", "DOCUMENTS"], "blank.jsonl, line 1: expected"),
        (["--queries", "OWN", "--output-format", "trec"], "item 1: the id 'a b' is empty or has spaces"),
        (
            ["--query", "one", "--documents", "DOCUMENTS", "--refine", "fp32", "--top-n", "1"],
            "cpu-fp32 scores in that precision",
        ),
    ],
)
def test_what_cannot_be_ranked_is_said_before_anything_is_scored(
    artifact: Artifact, documents: str, tmp_path: Path, capsys: Output, arguments: list[str], message: str
):
    own, blank = tmp_path / "own.jsonl", tmp_path / "blank.jsonl"
    own.write_text('{"query": "one", "documents": [{"text": "two", "id": "a b"}]}')
    blank.write_text('{"query": " "}')
    places = {"DOCUMENTS": documents, "OWN": str(own), "BLANK": str(blank)}
    assert main(["rerank", str(artifact.folder), *(places.get(argument, argument) for argument in arguments)]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


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
        (
            ["rerank", "ARTIFACT", "--query", "one", "--documents", "DOCUMENTS", "--refine", "int8"],
            "refine needs --top-n",
        ),
        (
            ["rerank", "ARTIFACT", "--query", "one", "--documents", "DOCUMENTS", "--device", "gpu"],
            "--device gpu, expected 'auto', 'cpu'",
        ),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "'frobnicate' is not one of export, serve"),
        (["rerank", "x"], "give one of --query and --queries"),
        (["rerank", "x", "--query", "one", "--documents", "d", "--top-n", "0"], "--top-n: 0 is less than 1"),
        (["rerank", "x", "--query", "one", "--max-length", "0"], "--max-length: 0 is less than 1"),
        (["score", "x", "y", "--gpu-memory-gb", "nan"], "--gpu-memory-gb: 'nan' is not a finite number"),
        (["score", "x", "y", "--threads", "two"], "--threads: 'two' is not a whole number"),
        (["score", "x", "y", "--output-format", "josnl"], "did you mean jsonl?"),
        (
            ["rerank", "x", "--query", "y", "--json", "--output-format", "csv"],
            "--json and --output-format exclude each other",
        ),
        (["cache", "eat"], "'eat' is not one of list, prune, clear"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_status_two(arguments: list[str], message: str, capsys: Output):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("rankrt") and error.count("\n") == 2


def test_without_arguments_the_help_is_shown(capsys: Output):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Usage: rankrt" in captured.err


def test_help_lists_all_commands_and_exit_statuses(capsys: Output):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(command in output for command in ["export", "rerank", "score", "info", "doctor", "cache"])
    assert all(f"\n  {status} " in output for status in [0, 1, 2, 130, 141])


@pytest.mark.parametrize("command", [[], ["rerank"], ["cache"], ["cache", "list"]])
def test_help_has_a_short_name_and_fits_the_terminal(
    command: list[str], capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    assert main([*command, "-h"]) == main([*command, "--help"]) == 0
    short, whole = re.findall(r"Usage:.*?(?=Usage:|\Z)", capsys.readouterr().out, re.DOTALL)
    assert short == whole
    for columns, most in (("60", 60), ("300", 110)):
        monkeypatch.setenv("COLUMNS", columns)
        main([*command, "-h"])
        assert max(map(len, capsys.readouterr().out.splitlines())) <= most


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("top_n=0, expected at least 1 (or None for all)", "--top-n 0, expected at least 1 (or leave it out for all)"),
        (
            "n_threads is for the CPU only, not for device='cuda:0'",
            "--threads is for the CPU only, not for --device cuda:0",
        ),
        ("max_length=99 is too long; lower max_length", "--max-length 99 is too long; lower --max-length"),
        ("query_max_length=9 is more than max_length=8", "--query-max-length 9 is more than --max-length 8"),
        ("a device of another precision", "a device of another precision"),
        ("the file my_max_length.txt", "the file my_max_length.txt"),
    ],
)
def test_the_library_s_parameters_are_named_as_options(message: str, expected: str):
    spelling = {name: f"--{name.replace('_', '-')}" for name in ("top_n", "device", "max_length", "query_max_length")}
    assert in_words_of_options(message, {**spelling, "precision": "--precision", "n_threads": "--threads"}) == expected


def test_an_error_that_nobody_foresaw_is_a_sentence_that_says_how_to_see_more(
    artifact: Artifact, documents: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise KeyError("mine")

    monkeypatch.setattr(Reranker, "rank", fail)
    rerank = ["rerank", str(artifact.folder), "--query", "one", "--documents", documents, "--no-prepare"]
    assert main(rerank) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("rankrt: error: KeyError: 'mine'. This is a mistake in rankrt")
    assert "RANKRT_TRACEBACK=1" in error and "rankrt doctor" in error
    monkeypatch.setenv("RANKRT_TRACEBACK", "1")
    assert main(rerank) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_name_that_the_system_refuses_is_a_sentence(capsys: Output):
    assert main(["rerank", "a" * 300, "--query", "one", "--documents", "b" * 300]) == 1
    assert capsys.readouterr().err == f"rankrt: error: {'b' * 300} cannot be read: File name too long\n"


def test_a_model_called_like_a_command_does_not_load_that_command(documents: str, capsys: Output):
    assert main(["rerank", "serve", "--query", "one", "--documents", documents]) == 1
    assert "error: serve does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["serve", "x"], ["serve"]])
def test_a_command_whose_extra_is_missing_says_which_pip_command_brings_it(arguments: list[str]):
    """In a process of its own, as the server's modules may have been imported here."""
    program = "import sys; sys.modules['starlette'] = None; from rankrt.cli.main import main; sys.exit(main())"
    finished = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert finished.returncode == 1
    assert re.fullmatch(
        r"rankrt: error: rankrt serve needs (starlette\S*|uvicorn), which is not installed:"
        r" pip install 'rankrt\[cpu,server\]'\n",
        finished.stderr,
    )


def test_the_export_half_is_asked_for_by_its_pip_command(capsys: Output, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rankrt_export.cli", None)
    assert main(["export", "--help"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rankrt: error: rankrt export needs rankrt_export")
    assert error.endswith("which is not installed: pip install 'rankrt[cpu,export]'\n")


def test_what_a_command_imports_while_it_runs_may_be_missing_too(
    artifact: Artifact, capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    server = pytest.importorskip("rankrt.server.cli", reason="needs the extra server", exc_type=ImportError)
    monkeypatch.setattr(server, "log_to_stderr", lambda *_: importlib.import_module("no_such_module"))
    assert main(["serve", str(artifact.folder)]) == 1
    assert "rankrt serve needs no_such_module, which is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["serve", "export"])
def test_an_extra_that_is_missing_does_not_change_the_other_commands(
    name: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    for module in ("rankrt.server.cli", "rankrt_export", "rankrt_export.cli"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["--version"]) == main(["--help"]) == 0
    assert f"\n  {name} " in capsys.readouterr().out
    assert main(["info", name]) == 1
    assert "not installed" not in capsys.readouterr().err  # a folder of that name is meant


def test_a_command_that_another_package_registers_changes_nothing(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    """Once, any third party's entry point of ours ended every call in a KeyError."""
    metadata = tmp_path / "other-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    points = "[rankrt.commands]\nmine = no_such_module\nexport = no_such_module\n"
    (metadata / "entry_points.txt").write_text(f"{points}[rankrt.exporters]\nexport = no_such_module:export\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "mine" in {point.name for point in entry_points(group="rankrt.commands")}
    assert main(["--version"]) == main(["doctor", "--json"]) == 0
    assert "mine" not in capsys.readouterr().out


def complete(shell: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> list[str]:
    """Return what a shell offers at the end of a line."""
    words = line.split(" ")
    monkeypatch.setenv("_RANKRT_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", words[-1] if shell == "fish" else str(len(words) - 1))
    assert main([]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("rankrt inf", ["plain,info"]),
        ("rankrt cache p", ["plain,prune"]),
        ("rankrt rerank x --quer", ["plain,--query", "plain,--queries", "plain,--query-max-length"]),
        ("rankrt rerank x --output-format j", ["plain,json", "plain,jsonl"]),
        ("rankrt rerank x --precision int", ["plain,int8", "plain,int4"]),
        ("rankrt rerank art", ["file,art"]),
        ("rankrt completion z", ["plain,zsh"]),
    ],
)
def test_a_shell_completes_commands_options_and_values(
    line: str, offered: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Output
):
    assert complete("bash", line, monkeypatch, capsys) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_asks_rankrt_itself(shell: str, capsys: Output):
    assert main(["completion", shell]) == 0
    assert f"_RANKRT_COMPLETE={shell}_complete" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_reads_the_script(capsys: Output):
    main(["completion", "bash"])
    script = capsys.readouterr().out
    checked = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p rankrt"], capture_output=True, text=True, check=True
    )
    assert "rankrt" in checked.stdout
