"""The documentation: what is generated is up to date, links lead somewhere, and the README's Python runs."""

import re
import shlex
import shutil
import subprocess
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import pytest

from rankrt import Reranker, errors
from rankrt.artifact.manifest import FORMAT_VERSION, Artifact
from rankrt.cli.main import program
from rankrt.files import seals
from tests.words import idioms, longest_sentence, mean_words

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tiny_reranker/*.md")])
# The changelog is a list of phrases.
PLAIN = [document for document in DOCUMENTS if document.name != "CHANGELOG.md"]


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


@pytest.mark.parametrize("document", PLAIN, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_are_plain_english(document: Path):
    """The mean of English documentation that reads well is 12 to 18 words a sentence."""
    text = prose_of(document.read_text(encoding="utf-8"))
    assert mean_words(text) <= 16
    assert longest_sentence(text) <= 40
    if document.name != "CONTRIBUTING.md":  # which names them
        assert idioms(text) == []


PAGES = sorted(ROOT.glob("docs/*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_option_header_metric_and_variable_of_a_page_exists(page: Path):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+|\bx-[a-z][a-z-]+|\brankrt_[a-z_]+|\bRANKRT_[A-Z_]+", text))
    others = {"--gpus", "--preload"}  # docker's and gunicorn's
    others |= {
        "--build",
        "--build-arg",
        "--from-file",
        "--platform",
        "--read-only",
        "--set",
        "--stop-timeout",
        "--tmpfs",
        "--values",
    }
    assert sorted(name for name in named - others if name not in sources()) == []


def test_the_server_s_limits_are_those_of_the_page():
    pytest.importorskip("starlette", reason="the server needs its extra")
    from rankrt.server.limits import Limits

    limits = Limits()
    page = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    defaults = dict(re.findall(r"^\| ([^|]+) \|[^|]*\| ([^|]+) \|", page[page.index("## Limits") :], re.MULTILINE))
    assert defaults["bytes of a body"] == f"{limits.max_body_bytes >> 20} MiB"
    assert defaults["bytes of all bodies in flight"] == f"{limits.max_inflight_bytes >> 20} MiB"
    assert defaults["documents of a request"] == f"{limits.max_documents:,}"
    assert defaults["tokens that were accepted and are not scored"] == f"{limits.max_queue_tokens:,}"
    assert defaults["time of a request"] == f"{limits.timeout_ms:,} ms"
    assert defaults["time until a header is complete"] == f"{limits.header_timeout_s:.0f} s"
    assert defaults["time until a body is complete"] == f"{limits.body_timeout_s:.0f} s"
    assert defaults["connections"] == f"{limits.max_connections:,}"
    assert defaults["bytes of the request line and headers"] == f"{limits.max_header_bytes >> 10} KiB"
    assert f"at most {limits.most_memory / 2**30:.1f} GiB" in page


def test_the_server_answers_every_path_of_the_page():
    pytest.importorskip("starlette", reason="the server needs its extra")
    from rankrt.server.http.openapi import describe

    page = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    table = page[page.index("| dialect |") : page.index("The paths of some other APIs")]
    paths = {path for row in table.splitlines() for path in re.findall(r"`(/[\w/]*)`", row)}
    assert sorted(paths - describe(needs_key=False)["paths"].keys()) == []


def test_figures_of_the_pages_are_those_of_the_code():
    pages = {page.stem: " ".join(page.read_text(encoding="utf-8").split()) for page in PAGES}
    small, sample, step = seals.SMALL_BYTES >> 20, seals._SAMPLE_BYTES >> 10, seals._SAMPLE_STEP >> 20
    assert f"files up to {small} MiB" in pages["cache"]
    assert f"{sample} KiB of every {step} MiB" in pages["cache"]
    contracts = [path for path in ROOT.glob("tests/server/contracts/*.json") if "documentation" not in path.name]
    assert f"what {len(contracts)} clients send" in pages["server"]
    assert f"format version {FORMAT_VERSION}" in pages["artifact"]


def test_the_library_page_lists_every_error_with_its_bases():
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+)`(?: \(also an? `(\w+)`\))? \|", page, re.MULTILINE))
    found = {name: error for name, error in vars(errors).items() if isinstance(error, type)}
    bases = {name: {base.__name__ for base in error.__bases__} - {"RankrtError"} for name, error in found.items()}
    assert {name: {base} - {""} for name, base in listed.items()} == {
        name: of for name, of in bases.items() if name != "RankrtError"
    }


@cache
def sources() -> str:
    """Return all code, and the options of the commands."""
    folders = ("runtime", "export", "finetune", "kernels", "benchmarks", "tiny_reranker")
    files = [*(path for folder in folders for path in (ROOT / folder).rglob("*.py")), ROOT / "docs" / "cli.md"]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def prose_of(markdown: str) -> str:
    """Return the sentences of a page: no code, no tables, no generated parts, no headings, links as their words."""
    for noise in (r"<!-- generated.*?<!-- end -->", r"```.*?```", r"^\|.*$", r"^#.*$"):
        markdown = re.sub(noise, "\n", markdown, flags=re.DOTALL if "`" in noise or "<" in noise else re.MULTILINE)
    markdown = re.sub(r"^[-*] ", "\n\n", markdown, flags=re.MULTILINE)
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", markdown).replace("**", "")
