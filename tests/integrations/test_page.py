"""The examples of docs/integrations.md, run as they stand with another model, and its thin packages."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankrt.artifact.manifest import Artifact

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
NEEDED = {
    "LangChain": "langchain_core",
    "LlamaIndex": "llama_index.core",
    "Haystack": "haystack",
    "PyTerrier": "pyterrier",
    "MTEB": "mteb",
    "DSPy": "dspy",
}


def test_each_framework_of_the_page_is_tried_here():
    assert [section for section in SECTIONS if section != "Packages of their own"] == list(NEEDED)


@pytest.mark.parametrize(("section", "needed"), NEEDED.items(), ids=NEEDED.keys())
def test_an_example_runs(
    section: str, needed: str, artifact: Artifact, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip(needed, reason=f"{needed} is not installed")
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)
    if section == "MTEB":  # its tasks are on the Hub, but for its mock
        pytest.importorskip("mteb.mocks.mock_tasks.reranking", reason="this release of mteb has no mock tasks")
        mock = "__import__('mteb.mocks.mock_tasks.reranking', fromlist=['_']).MockRerankingTask()"
        code = code.replace('mteb.get_task("AskUbuntuDupQuestions")', mock)
        monkeypatch.setenv("MTEB_CACHE", str(artifact.folder / "mteb"))
    if section == "DSPy":
        import dspy
        from dspy.utils import DummyLM

        dspy.configure(lm=DummyLM([{"reasoning": "It is said.", "answer": "a bear"}]))
    names: dict[str, Any] = {"__name__": "example"}
    exec(code.replace("./bge-m3", str(artifact.folder)), names)
    assert capsys.readouterr().out.strip()


PACKAGES = dict(
    re.findall(r"`([\w/]+/__init__\.py)`.*?```python\n(.*?)```", SECTIONS["Packages of their own"], re.DOTALL)
)
TRIED = {
    "langchain_rankrt": "langchain_core",
    "llama_index/postprocessor/rankrt": "llama_index",
    "haystack_integrations/components/rankers/rankrt": "haystack",
    "pyterrier_rankrt": "pyterrier",
}
# A pipeline with the class of the package is read without a list of modules to trust.
OF_HAYSTACK = """
from haystack import Document, Pipeline

pipeline = Pipeline()
pipeline.add_component("ranker", package.RankrtRanker(model=sys.argv[1], top_k=1))
asked = {"ranker": {"query": "one", "documents": [Document(content="two"), Document(content="three")]}}
found = Pipeline.loads(pipeline.dumps()).run(asked)["ranker"]["documents"]
assert [document.content for document in found] == ["three"]
"""


@pytest.mark.parametrize(("folder", "needed"), TRIED.items(), ids=TRIED.values())
def test_a_thin_package_hands_on_its_class(folder: str, needed: str, artifact: Artifact, tmp_path: Path):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    file = tmp_path / folder / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text(PACKAGES[f"{folder}/__init__.py"])
    program = f"import sys, {folder.replace('/', '.')} as package\n"
    program += "assert all(hasattr(package, name) for name in package.__all__)\n"
    program += OF_HAYSTACK if needed == "haystack" else ""
    subprocess.run(
        [sys.executable, "-c", program, str(artifact.folder)],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'runtime'}"},
        check=True,
        timeout=120,
    )
