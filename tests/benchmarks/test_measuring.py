"""The harness itself: operations counted as they are done, workers that answer, time, and end with their reason."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sgemm_share import Shape
from benchmarks.worker import Worker
from benchmarks.workloads import exact, mixed, paragraphs
from rankrt.artifact import Artifact


@pytest.fixture
def data(tmp_path: Path) -> Path:
    texts = ["One. Two! Three? Four. Five.", "Short.", "A. B. C. D."]
    lines = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "docs_en.jsonl").write_text("\n".join(lines))
    (tmp_path / "candidates_en_top20.jsonl").write_text('{"query": "which?", "cand": ["0"], "label": [1]}\n')
    return tmp_path


def test_a_row_s_operations_are_those_of_its_products():
    shape = Shape(n_layers=2, hidden=8, intermediate=16)
    n, h, f = 5, 8, 16
    full = 4 * 2 * n * h * h + 2 * 2 * n * n * h + 2 * 2 * n * h * f
    last = 2 * 2 * n * h * h + 2 * 2 * h * h + 2 * 2 * n * h + 2 * 2 * h * f
    assert shape.operations(n) == full + last + 2 * h * h


def test_workloads_are_the_texts_whole_or_cut_at_sentences(data: Path):
    assert paragraphs(data, "en", 2).passages == ("One. Two! Three? Four. Five.", "Short.")
    assert mixed(data, "en", 3).passages == ("One.", "Short.", "A. B. C. D.")
    assert exact(data, "en", 128).max_length == 128
    assert mixed(data, "en", 1).query == "which?"


def test_a_worker_answers_with_scores_and_seconds(artifact: Artifact):
    with Worker("rankrt", str(artifact.folder), n_threads=1) as worker:
        answer = worker.call("one", ["two", "three"], max_length=64)
        assert answer.scores == [3.0, 4.0]
        assert 0 < answer.seconds < 60
        assert "onnxruntime" in worker.versions


def test_a_worker_that_ends_says_so():
    with pytest.raises(RuntimeError, match="rankrt ended with status 1"):
        Worker("rankrt", "/no/artifact", n_threads=1)


def test_the_memory_probe_reports_what_it_measured(artifact: Artifact):
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--artifact", str(artifact.folder), "--probe", "reranker"],
        check=True,
        capture_output=True,
        text=True,
    )
    answer = json.loads(process.stdout)
    assert answer["load_s"] > 0
    assert answer["scored_mb"] >= answer["loaded_mb"] > 1
