"""A run's record has the form it says, survives an interruption, and is compared and reported."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from benchmarks.records import compare, report
from benchmarks.records.plots import pareto
from benchmarks.records.record import Record, RecordError, describe_accelerator, read_record, write_record
from benchmarks.run import main
from rankrt_finetune.reports.pictures import COLORS
from rankrt_finetune.reports.tables import Table, figure
from tests.benchmarks.conftest import CHECKPOINT, ROOT, STEADY

SLOWER, CRASHES = "tests.benchmarks.fakes:Slower", "tests.benchmarks.fakes:Crashes"
SCHEMA = json.loads((ROOT / "benchmarks" / "records" / "record.schema.json").read_text())
RECORDS = [path for path in (ROOT / "benchmarks" / "results").glob("*.json") if "schema_version" in path.read_text()]


def run(path: Path, *arguments: str) -> int:
    """Measure with the fakes."""
    given = ["--systems", STEADY, SLOWER, CRASHES]
    options = [
        "--reference",
        STEADY,
        "--rounds",
        "4",
        "--seconds",
        "0",
        "--passages",
        "1",
        "2",
        "--kinds",
        "short",
        "mixed",
    ]
    return main(["latency", "throughput", *given, *options, "--model", str(CHECKPOINT), "-o", str(path), *arguments])


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKRT_BENCH_CACHE", str(folder))
        assert run(folder / "record.json") == 0
    return folder / "record.json"


@pytest.fixture
def record(path: Path) -> Record:
    return read_record(path)


def test_a_record_has_the_form_of_the_schema(path: Path):
    jsonschema.validate(json.loads(path.read_text()), SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads(path.read_text()), "rows": [{"suite": 1}]}, SCHEMA)


@pytest.mark.parametrize("committed", RECORDS, ids=lambda path: path.name)
def test_committed_results_have_the_form_of_the_schema(committed: Path):
    jsonschema.validate(json.loads(committed.read_text()), SCHEMA)


def test_a_record_says_what_was_measured_on_what(record: Record):
    assert record.is_complete
    assert record.model.name == "checkpoint"
    assert record.model.max_length == 512
    assert record.baseline == STEADY
    assert record.machine.n_threads == len(record.machine.cpus)
    assert record.systems[STEADY].versions == {"fake": "1"}
    assert {row.reason for row in record.rows if "Crashes" in row.system} == {
        "MemoryError: no room for the scores (status 1)"
    }


def test_the_last_line_of_output_is_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(tmp_path / "record.json")
    output = capsys.readouterr()
    summary = json.loads(output.out.splitlines()[-1])
    assert summary["n_without_a_value"] == 5
    assert summary["throughput"][0]["system"] == STEADY
    assert "latency" in output.err


def test_an_interruption_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(lab: Any, system: str) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setitem(__import__("benchmarks.suites").suites.SUITES, "throughput", interrupted)
    assert run(tmp_path / "record.json") == 130
    kept = read_record(tmp_path / "record.json")
    assert not kept.is_complete
    assert [row.case for row in kept.rows] == ["1 short", "2 short", "1 mixed", "2 mixed"]


def test_a_run_is_made_in_pieces_and_ends_as_one_record(tmp_path: Path):
    whole, piece = ("--systems", STEADY, SLOWER, CRASHES), ("--systems", SLOWER, "--baseline", STEADY)
    assert run(tmp_path / "record.json", *piece) == 0
    first = read_record(tmp_path / "record.json")
    assert run(tmp_path / "record.json", *whole, "--resume") == 0
    both = read_record(tmp_path / "record.json")
    assert [row for row in both.rows if row.system == SLOWER] == list(first.rows)  # nothing is measured again
    assert {row.system for row in both.rows} == {STEADY, SLOWER, CRASHES}
    assert len({row.key for row in both.rows}) == len(both.rows) == 15
    assert [part.made for part in both.parts] == [first.made]
    assert set(both.systems) >= {STEADY, SLOWER}


def test_what_failed_is_tried_again_when_a_run_goes_on(record: Record, tmp_path: Path):
    rows = tuple(msgspec.structs.replace(row, seconds=(), metrics={}, reason="no disk") for row in record.rows)
    write_record(msgspec.structs.replace(record, rows=rows), tmp_path / "record.json")
    assert run(tmp_path / "record.json", "--resume") == 0
    resumed = read_record(tmp_path / "record.json")
    assert [row.key for row in resumed.rows] == [row.key for row in record.rows]
    assert {row.system for row in resumed.rows if row.reason} == {CRASHES}


def test_a_record_of_something_else_is_not_continued(record: Record, tmp_path: Path, capsys: Any):
    write_record(msgspec.structs.replace(record, commit="1234567"), tmp_path / "record.json")
    assert run(tmp_path / "record.json", "--resume") == 1
    assert "the record to continue was made with another commit (1234567, now" in capsys.readouterr().err
    assert run(tmp_path / "record.json", "--resume", "--baseline", SLOWER) == 1
    assert read_record(tmp_path / "record.json").commit == "1234567"  # it is left as it was


def test_a_record_of_a_gpu_names_it_with_its_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\ntest "$2" = 1 && echo "NVIDIA H100 80GB HBM3, 580.65.06, 81559"\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gpu = describe_accelerator("cuda:1", 700.0)
    assert (gpu.device, gpu.name, gpu.driver, gpu.memory_gb) == ("cuda:1", "NVIDIA H100 80GB HBM3", "580.65.06", 85.5)
    assert run(tmp_path / "record.json", "--device", "cuda:0") == 1
    assert "--device cuda:0: nvidia-smi does not show that GPU" in capsys.readouterr().err


def test_what_is_no_record_or_no_model_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "other.json").write_text('{"benchmark": "speed"}')
    assert report.main([str(tmp_path / "other.json")]) == 1
    assert "is not a record of `python -m benchmarks.run`" in capsys.readouterr().err
    assert main(["latency", "--systems", STEADY, "--model", str(tmp_path)]) == 1
    assert "is not a checkpoint" in capsys.readouterr().err
    assert main(["latency", "--systems", STEADY, "--model", str(CHECKPOINT), "--text", str(tmp_path)]) == 1
    assert "docs_ar.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--systems", "tensorflow"], "'tensorflow' is not a system"),
        (["--systems", STEADY, "--baseline", "torch"], "torch stands for torch-eager, torch-sdpa"),
        (["--systems", STEADY, "--kinds", "long"], "--kinds long: expected short, mixed, paragraphs, or a number"),
        (["--systems", STEADY, "--device", "tpu"], "--device tpu: expected cpu, cuda, tensorrt, or one with a number"),
        (["--systems", STEADY, "--server", "rankrt"], "--server rankrt: expected NAME=COMMAND"),
    ],
)
def test_a_name_that_means_nothing_is_said_before_anything_is_built(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        main(["latency", "--model", str(CHECKPOINT), *arguments])
    assert message in capsys.readouterr().err


def changed(record: Record, factor: float, path: Path, baseline_factor: float = 1.0) -> str:
    """Write a record in which Slower takes another time, and the baseline too."""
    rows = [
        msgspec.structs.replace(
            row,
            seconds=tuple(s * (factor if "Slower" in row.system else baseline_factor) for s in row.seconds),
            baseline_seconds=tuple(s * baseline_factor for s in row.baseline_seconds),
        )
        for row in record.rows
    ]
    write_record(msgspec.structs.replace(record, rows=tuple(rows)), path)
    return str(path)


def test_a_regression_over_five_percent_exits_1(record: Record, path: Path, tmp_path: Path, capsys: Any):
    assert compare.main([str(path), str(path)]) == 0
    assert compare.main([str(path), changed(record, 0.9, tmp_path / "faster.json")]) == 0
    assert compare.main([str(path), changed(record, 1.03, tmp_path / "little.json")]) == 0
    assert compare.main([str(path), changed(record, 1.12, tmp_path / "slower.json")]) == 1
    assert "REGRESSION" in capsys.readouterr().out
    assert compare.main([str(path), str(tmp_path / "slower.json"), "--limit", "0.2"]) == 0


def test_a_machine_that_became_slower_is_no_regression_of_what_has_a_yardstick(
    record: Record, path: Path, tmp_path: Path
):
    slower = changed(record, 1.5, tmp_path / "all.json", baseline_factor=1.5)
    assert compare.main([str(path), slower, "--systems", SLOWER]) == 0
    assert compare.main([str(path), slower]) == 1


def test_what_is_measured_no_more_is_no_success(record: Record, path: Path, tmp_path: Path, capsys: Any):
    rows = tuple(
        msgspec.structs.replace(row, seconds=(), reason="it crashed") if row.case == "1 short" else row
        for row in record.rows
    )
    write_record(msgspec.structs.replace(record, rows=rows), tmp_path / "less.json")
    assert compare.main([str(path), str(tmp_path / "less.json")]) == 1
    assert "was measured before and is not now: it crashed" in capsys.readouterr().out


def test_records_of_different_models_are_not_compared(record: Record, path: Path, tmp_path: Path):
    model = msgspec.structs.replace(record.model, sha256="0" * 64)
    write_record(msgspec.structs.replace(record, model=model), tmp_path / "other.json")
    assert compare.main([str(path), str(tmp_path / "other.json")]) == 2


def test_the_report_is_one_page_that_needs_nothing_else(path: Path, tmp_path: Path):
    assert report.main([str(path), "-o", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!#)', page.replace("xlink:href", ""))
    assert "Speed against quality" in page
    body = page.partition("</style>")[2]
    assert not any(colour in body for colour in COLORS), "a dark page has other colours, pictures included"
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "## latency: 1 short" in markdown
    assert "MemoryError: no room for the scores" in markdown
    assert "MemoryError: no room for the scores" in page


def test_tables_and_figures_are_readable():
    table = Table(heading=["a", "b"], rows=[["x|y", "1"]])
    assert table.markdown() == "| a | b |\n|---|---|\n| x\\|y | 1 |\n"
    assert "<td>x|y</td>" in table.html()
    values = (None, 0.0, 12.345, 1234.5, 0.01234, 1e-6, 3.0)
    assert [figure(value) for value in values] == ["-", "0", "12.3", "1,234", "0.0123", "1e-06", "3.00"]


def test_the_pareto_front_is_who_is_beaten_in_neither():
    points = {"exact": (0.0, 1.0), "slow": (0.5, 0.5), "fast": (0.5, 4.0), "coarse": (2.0, 3.0)}
    assert pareto(points) == ["exact", "fast"]


def test_a_file_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(RecordError, match="cannot be read: No such file"):
        read_record(tmp_path / "none.json")
