"""Suites measure what is known, and what fails becomes a row with its reason."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.lab import Lab, Settings, open_model
from benchmarks.harness.operations import Shape
from benchmarks.harness.processes import memory_mb
from benchmarks.harness.workloads import Source, read
from benchmarks.records.record import Row
from benchmarks.run import measure
from tests.benchmarks.conftest import CHECKPOINT, STEADY, with_server
from tests.benchmarks.fakes import CALL_S

SLOWER = "tests.benchmarks.fakes:Slower"


def rows(suite: str, system: str, lab: Lab) -> list[Row]:
    return list(measure(suite, system, lab))


def test_a_system_of_known_delay_is_measured_within_five_percent(lab: Lab):
    """The fastest of five calls: a busy host makes the others longer, and the median of them."""
    for row in rows("latency", SLOWER, lab):
        assert len(row.seconds) == len(row.baseline_seconds) == 5
        assert min(row.seconds) == pytest.approx(1.5 * CALL_S, rel=0.05)
        assert min(row.baseline_seconds) == pytest.approx(CALL_S, rel=0.05)
        assert row.metrics["p50_ms"] == pytest.approx(1e3 * np.median(row.seconds))
        assert row.metrics["times_baseline"] == pytest.approx(
            np.median(np.divide(row.seconds, row.baseline_seconds)), rel=1e-6
        )


def test_throughput_is_what_was_scored_in_that_time_and_drift_stands_beside_it(lab: Lab):
    (row,) = rows("throughput", SLOWER, lab)
    assert row.case == "8 mixed"
    middle = np.median(row.seconds)
    assert min(row.seconds) == pytest.approx(1.5 * CALL_S, rel=0.05)
    assert row.metrics["pairs_per_s"] == pytest.approx(8 / middle)
    assert row.metrics["tokens_per_s"] == pytest.approx(row.size["n_tokens"] / middle)
    assert row.metrics["max_drift"] == 0.5


def test_quality_compares_with_the_reference_and_ranks(lab: Lab):
    (row,) = rows("quality", SLOWER, lab)
    assert row.metrics["mean_drift"] == 0.5
    assert row.metrics["tau"] == pytest.approx(1)
    assert row.metrics["top_10_overlap"] == 1
    assert 0 < (row.metrics["mrr_10"] or 0) <= (row.metrics["ndcg_10"] or 0) + 0.3 < 1.3


@pytest.mark.parametrize(
    ("system", "reason"),
    [("Crashes", "MemoryError: no room"), ("Hangs", "a call took longer than 2 s"), ("NeverLoads", "has no head")],
)
def test_what_crashes_hangs_or_does_not_load_is_a_row_with_the_reason(lab: Lab, system: str, reason: str):
    found = rows("latency", f"tests.benchmarks.fakes:{system}", lab)[:1]
    assert [reason in (row.reason or "") for row in found] == [True]


def test_a_failure_of_the_baseline_is_called_so(source: Source, settings: Settings):
    crashes = "tests.benchmarks.fakes:Crashes"
    with Lab(open_model(str(CHECKPOINT)), source, settings, crashes, STEADY) as lab:
        reason = rows("latency", STEADY, lab)[0].reason
    assert reason == f"the baseline, {crashes}: MemoryError: no room for the scores (status 1)"


def test_a_call_that_is_foreseen_to_take_too_long_is_not_made(lab: Lab, source: Source):
    lab.time(STEADY, source.make("short", 1))
    with pytest.raises(Exception, match=r"s a call, the limit is 2 s \(--call-limit\)"):
        lab.time(STEADY, source.make("512", 100))


def test_starting_and_memory_are_measured_from_outside(lab: Lab):
    found = {row.case: row for row in rows("startup", STEADY, lab)}
    assert (found["warm"].metrics["first_score_s"] or 0) > CALL_S
    assert (found["cold"].metrics["first_score_s"] or 0) > CALL_S
    one, two = (found[f"{n} processes"].metrics["rss_mb"] or 0 for n in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.2)
    memory = memory_mb(os.getpid())
    assert memory["rss"] == pytest.approx(memory["private"] + memory["shared"])


def test_scaling_has_three_axes(lab: Lab):
    names = [row.case for row in rows("scaling", STEADY, lab) if row.reason is None]
    assert names[0] == "length 16"
    assert "rows 16" in names
    assert names[-1] == "threads 1"


def test_a_server_is_started_loaded_and_stopped(source: Source, settings: Settings):
    command = f"{sys.executable} -m tests.benchmarks.fakes {{port}}"
    with Lab(open_model(str(CHECKPOINT)), source, with_server(settings, STEADY, command), STEADY, STEADY) as lab:
        low, *between, high = rows("load", STEADY, lab)
    assert {row.size["capacity_per_s"] for row in (low, *between, high)} == {low.size["capacity_per_s"]}
    assert low.reason is None
    # One call at a time. Other work on the machine makes it less: 11 instead of 25 a second were seen.
    assert 0 < low.size["capacity_per_s"] <= 1.1 / CALL_S
    assert low.metrics["failed"] == 0
    assert np.median(low.seconds) >= CALL_S
    assert np.median(high.seconds) > np.median(low.seconds)


def test_a_server_that_does_not_start_is_a_row_with_the_reason(source: Source, settings: Settings):
    for command, reason in (("no-such-server", "no-such-server: No such file"), ("false", "its server ended")):
        with Lab(open_model(str(CHECKPOINT)), source, with_server(settings, STEADY, command), STEADY, STEADY) as lab:
            assert reason in (rows("load", STEADY, lab)[0].reason or "")


def test_a_row_s_operations_are_those_of_its_products():
    shape = Shape(n_layers=2, hidden=8, intermediate=16)
    n, h, f = 5, 8, 16
    full = 4 * 2 * n * h * h + 2 * 2 * n * n * h + 2 * 2 * n * h * f
    last = 2 * 2 * n * h * h + 2 * 2 * h * h + 2 * 2 * n * h + 2 * 2 * h * f
    assert shape.operations(n) == full + last + 2 * h * h
    assert shape.n_bytes == 2 * 4 * (4 * h * h + 2 * h * f)


def test_workloads_are_the_passages_whole_cut_or_filled(tmp_path: Path):
    path = tmp_path / "text.jsonl"
    path.write_text(
        '{"query": "which?", "pos": ["One. Two! Three? Four."], "neg": ["Short.", "A. B. C. D.", "Short."]}\n'
    )
    name, texts = read(path)
    source = Source(texts, CHECKPOINT / "tokenizer.json")
    assert name == "text.jsonl"
    assert source.make("paragraphs", 3).passages == ("One. Two! Three? Four.", "Short.", "A. B. C. D.")
    assert source.make("mixed", 3).passages == ("One.", "Short.", "A. B. C. D.")
    filled = source.make("128", 2)
    assert _lengths(filled.n_tokens, filled.longest) == (256, 128)
    assert filled.passages[0] != filled.passages[1]
    with pytest.raises(ValueError, match=r"the text has 3 passages, 9 are wanted: give more \(--text\)"):
        source.make("short", 9)


def _lengths(*numbers: int) -> Sequence[int]:
    return numbers
