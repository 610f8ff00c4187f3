"""The examples, each run as a person would, with the tiny trained model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs the export extra")
pipeline = pytest.importorskip("rankrt_export.pipeline")

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "tiny_reranker" / "checkpoint"
pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("examples") / "tiny"
    pipeline.export(str(CHECKPOINT), folder, pipeline.Options())
    return folder


def run(name: str, model: Path) -> list[str]:
    """Run an example in a folder of its own and return the lines that it printed."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py", model],
        cwd=model.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / half) for half in ("runtime", "export"))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_rank_puts_the_bear_first(model: Path):
    first, second, cut, logits = run("rank", model)
    assert "passage 1  The giant panda is a bear" in first
    assert float(first.split()[0]) >= float(second.split()[0])
    assert cut.endswith("cut documents: []")
    assert len(re.findall(r"-?\d+\.\d{3}", logits)) == 3


def test_long_documents_finds_the_window_with_the_answer(model: Path):
    *cut, best, other = run("long_documents", model)
    assert all("truncated=True" in line for line in cut)
    assert "document 1" in best
    assert best.endswith("with the answer")
    assert other.endswith("without it")


def test_serve_and_ask_answers_in_three_dialects(model: Path):
    if sys.platform == "win32":
        pytest.skip("the server needs Linux or macOS")
    pytest.importorskip("uvicorn", reason="needs the extra server")
    cohere, jina, tei = run("serve_and_ask", model)
    assert cohere.startswith("Cohere: [(1, ")
    assert jina == "Jina: The giant panda is a bear that lives in China."
    assert tei.startswith("TEI: [(1, ")


def test_from_flagembedding_gives_the_same_scores_both_ways():
    theirs, ours = (line.partition(": ")[2] for line in run("from_flagembedding", CHECKPOINT))
    assert theirs == ours
    low, high = json.loads(theirs)
    assert low < high


def test_each_example_has_a_test():
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__", "demo"}  # `make demo` runs it
    assert examples == set(re.findall(r'run\("(\w+)"', Path(__file__).read_text(encoding="utf-8")))
