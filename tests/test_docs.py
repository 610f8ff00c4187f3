"""The documentation: what is generated is up to date, links lead somewhere, and the README's Python runs."""

import re
import shlex
import shutil
import subprocess
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import pytest

from rankrt import Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.cli.main import program

ROOT = Path(__file__).resolve().parents[1]
# Written in plain English, and checked for it; the other pages follow.
PLAIN = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *(f"docs/{name}.md" for name in ("usage", "int8", "llm-rerankers", "memory")),
]
IDIOMS = r"\b(behind|whoever|nobody|somebody|heeds?|anew|foreseen|at hand|(?<!there )is no|(?<!there )are no)\b"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tiny_reranker/*.md")])


def test_generated_parts_are_up_to_date():
    docs = pytest.importorskip("scripts.docs")
    stale = [path.name for path, text in docs.generated().items() if not path.exists() or path.read_text() != text]
    assert stale == [], "run: make docs"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path):
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_speaks_of_one_machine(document: Path):
    text = document.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|work|tmp)/", text)


def test_the_readme_s_quick_start_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("torch", reason="exporting needs the export extra")
    pipeline = pytest.importorskip("rankrt_export.pipeline")
    pipeline.export(str(ROOT / "tiny_reranker" / "checkpoint"), tmp_path / "tiny", pipeline.Options())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ((code, printed),) = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out == printed


def test_the_usage_page_s_python_runs(artifact: Artifact, capsys: pytest.CaptureFixture[str]):
    usage = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    code, *_ = re.findall(r"```python\n(.*?)```", usage, re.DOTALL)
    names: dict[str, Any] = {"passages": ["one", "two three"]}
    exec(code.replace("./bge-m3", str(artifact.folder)), names)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "0"]
    assert names["logits"].shape == (2,)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_lists_every_target():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [line.split()[0] for line in listed] == targets.split()


def commands_of(document: Path) -> list[list[str]]:
    """Return the words after `rankrt` in a page's code blocks, without comments, redirections and [optional] words."""
    found = []
    for block in re.findall(r"```\w*\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
        for match in re.finditer(r"^(?:\w+=\S+ +)*rankrt (.*)$", block.replace("\\\n", " "), re.MULTILINE):
            words = shlex.shlex(re.sub(r"\[.*?\]", "", match[1]), posix=True, punctuation_chars="&|>")
            words.whitespace_split = True
            found.append(list(takewhile(lambda word: word not in ("&", "|", ">"), words)))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_in_a_code_block_can_be_typed(document: Path):
    pytest.importorskip("rankrt_export.cli", reason="reads the options of rankrt export", exc_type=ImportError)
    pytest.importorskip("rankrt.server.cli", reason="reads the options of rankrt serve", exc_type=ImportError)
    for name, *arguments in commands_of(document):
        with click.Context(program, info_name="rankrt") as context:
            found = program.get_command(context, name)
            assert found is not None, name
            found.make_context(name, arguments, parent=context)


def test_commands_are_found_in_the_documents():
    assert sum(len(commands_of(document)) for document in DOCUMENTS) > 20


def test_every_extra_of_the_readme_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {name for extras in re.findall(r"rankrt\[([a-z,]+)\]", readme) for name in extras.split(",")}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name} = \[", project, re.MULTILINE) for name in named)


def test_the_reranker_s_documented_options_exist():
    assert Reranker.load.__doc__ is not None
    for option in ("device", "precision", "n_threads", "max_length", "revision", "cache_dir", "prepare"):
        assert option in Reranker.load.__doc__


@pytest.mark.parametrize("name", PLAIN)
def test_the_words_are_plain_english(name: str):
    """The mean of English documentation that reads well is 12 to 18 words a sentence."""
    text = prose_of((ROOT / name).read_text(encoding="utf-8"))
    sentences = [sentence.split() for sentence in re.split(r"(?<=[.!?])\s+|\n{2,}", text) if sentence.strip()]
    assert sum(map(len, sentences)) / len(sentences) <= 16
    assert max(map(len, sentences)) <= 40
    if name != "CONTRIBUTING.md":  # which names them
        assert re.findall(IDIOMS, text, re.IGNORECASE) == []


def prose_of(markdown: str) -> str:
    """Return the sentences of a page: no code, no tables, no generated parts, no headings, links as their words."""
    for noise in (r"<!-- generated.*?<!-- end -->", r"```.*?```", r"^\|.*$", r"^#.*$"):
        markdown = re.sub(noise, "\n", markdown, flags=re.DOTALL if "`" in noise or "<" in noise else re.MULTILINE)
    markdown = re.sub(r"^[-*] ", "\n\n", markdown, flags=re.MULTILINE)
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", markdown).replace("**", "")
