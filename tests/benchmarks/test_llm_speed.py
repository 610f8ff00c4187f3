"""The LLM rerankers' record: rounds of all systems or of none, gone on with, and what follows for the full depth."""

import os
from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.harness.worker import Answer, SystemFailed
from benchmarks.harness.workloads import Workload
from benchmarks.studies import llm_speed

WORKLOAD = Workload(name="2 mixed", query="why?", passages=("a", "b"), max_length=512, n_tokens=9, longest=5)
CONDITIONS: dict[str, Any] = {
    "model": "gemma-6",
    "architecture": "GemmaForCausalLM",
    "n_layers": 6,
    "n_weights_of_layer": 100,
    "n_weights_of_vocabulary": 400,
}


class Calls:
    """A worker that answers in so many seconds, by batch size, and may fail."""

    def __init__(self, seconds: dict[int | None, float], scores: list[float], *, fails: bool = False) -> None:
        self._seconds, self._scores, self._fails = seconds, scores, fails
        self.versions, self.pid = {"engine": "1"}, os.getpid()
        self.asked: list[int | None] = []

    def call(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> Answer:
        if self._fails:
            raise SystemFailed("no memory")
        self.asked.append(batch_size)
        return Answer(seconds=self._seconds[batch_size], scores=self._scores)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_speed, "_PAUSE_S", 0)


def measured(n_rounds: int) -> tuple[dict[str, Any], Calls]:
    record: dict[str, Any] = {"benchmark": "llm_speed", "models": []}
    theirs = Calls({1: 5.0, 4: 4.0}, [1.0, 2.5])
    workers: dict[str, Any] = {"llm-rankrt": Calls({None: 2.0}, [1.0, 2.0]), "llm-flagembedding": theirs}
    entry = llm_speed._entry(record, CONDITIONS)
    sizes = llm_speed.warm_up(workers, WORKLOAD, entry)
    for _ in range(n_rounds):
        llm_speed.one_round(workers, WORKLOAD, sizes, entry)
    return record, theirs


def test_flagembedding_s_faster_batch_size_is_measured_and_named():
    record, theirs = measured(2)
    assert theirs.asked == [1, 4, 4, 4]
    (entry,) = record["models"]
    assert entry["seconds"] == {"llm-rankrt": [2.0, 2.0], "llm-flagembedding": [4.0, 4.0]}
    assert entry["differences"]["llm-flagembedding"] == {"mean": 0.25, "max": 0.5}
    assert "| FlagEmbedding 4 at a time | 4.00 s | 2.00 |" in llm_speed.table(record)
    assert entry["memory_mb"]["llm-rankrt"] > 10


def test_the_full_depth_counts_the_vocabulary_once():
    record, _ = measured(1)
    # 400 + 18 * 100 weights where there were 400 + 6 * 100; rankrt has three times as many.
    assert "8.80 s, 1.47 x" in llm_speed.table(record)
    assert "6.00 s, 1.00 x" in llm_speed.table(record)


def test_a_record_of_the_same_conditions_is_gone_on_with_and_another_replaced():
    record, _ = measured(2)
    assert llm_speed._entry(record, CONDITIONS)["seconds"]["llm-rankrt"] == [2.0, 2.0]
    assert llm_speed._entry(record, {**CONDITIONS, "n_layers": 5})["seconds"] == {}
    assert len(record["models"]) == 1
    llm_speed._entry(record, {**CONDITIONS, "model": "minicpm-12"})
    assert [entry["conditions"]["model"] for entry in record["models"]] == ["gemma-6", "minicpm-12"]


def test_a_round_in_which_a_system_fails_is_no_round():
    entry = llm_speed._entry({"models": []}, CONDITIONS)
    entry["seconds"] = {"llm-rankrt": [], "llm-flagembedding": []}
    workers: dict[str, Any] = {
        "llm-rankrt": Calls({None: 2.0}, [1.0]),
        "llm-flagembedding": Calls({}, [], fails=True),
    }
    with pytest.raises(SystemFailed, match="no memory"):
        llm_speed.one_round(workers, WORKLOAD, {"llm-rankrt": None, "llm-flagembedding": 1}, entry)
    assert entry["seconds"] == {"llm-rankrt": [], "llm-flagembedding": []}
