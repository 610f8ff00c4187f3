"""A lab with the tiny checkpoint, whose baseline and reference are fakes: nothing is installed or converted."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.lab import Lab, Settings, open_model, pinned_cpus
from benchmarks.harness.worker import Budget
from benchmarks.harness.workloads import Source
from rankrt_export.text.texts import sample

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "tiny_reranker" / "checkpoint"
STEADY = "tests.benchmarks.fakes:Steady"


@pytest.fixture(autouse=True)
def _own_bench_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKRT_BENCH_CACHE", str(tmp_path / "bench"))


@pytest.fixture(scope="session")
def source() -> Source:
    return Source(sample(), CHECKPOINT / "tokenizer.json")


@pytest.fixture
def settings() -> Settings:
    budget = Budget(n_threads=1, cpus=pinned_cpus(1), load_s=30, call_s=2)
    return Settings(budget=budget, rounds=5, seconds=0.0, passages=(1, 8), kinds=("short", "mixed"), load_seconds=1.0)


@pytest.fixture
def lab(source: Source, settings: Settings) -> Iterator[Lab]:
    with Lab(open_model(str(CHECKPOINT)), source, settings, baseline=STEADY, reference=STEADY) as opened:
        yield opened


def with_server(settings: Settings, system: str, command: str) -> Settings:
    return replace(settings, servers={system: command})
