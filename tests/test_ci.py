"""CI itself: a step that hangs is ended and named, and what the workflows run are steps that exist."""

import importlib.util
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / ".ci" / "steps.py").exists():
    pytest.skip("needs the repository", allow_module_level=True)


@pytest.fixture(scope="module")
def ci() -> Any:
    spec = importlib.util.spec_from_file_location("ci_steps", ROOT / ".ci" / "steps.py")
    assert spec is not None and spec.loader is not None
    sys.modules["ci_steps"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outcome(ci: Any, tmp_path: Path, *programs: str, limit_s: int = 30) -> Any:
    """Run Python programs as one step."""
    commands = tuple((sys.executable, "-c", program) for program in programs)
    return ci.run(ci.Step(name="tried", title="a try", limit_s=limit_s, commands=commands), ci.Workshop(tmp_path))


def test_a_step_that_hangs_is_ended_with_its_children_and_named(ci: Any, tmp_path: Path):
    child = "import time, pathlib; time.sleep(8); pathlib.Path('late').touch()"
    hangs = (
        f"import os, subprocess, sys; os.chdir({str(tmp_path)!r}); subprocess.run([sys.executable, '-c', {child!r}])"
    )
    tried = outcome(ci, tmp_path, hangs, limit_s=2)
    assert tried.said == "failed: not ended after 2 s"
    time.sleep(max(0.0, 9 - tried.seconds))
    assert not (tmp_path / "late").exists()


def test_a_step_passes_if_all_its_commands_do(ci: Any, tmp_path: Path):
    assert outcome(ci, tmp_path, "", "").said == "passed"
    failed = outcome(ci, tmp_path, "raise SystemExit(3)", f"open({str(tmp_path / 'next')!r}, 'w')")
    assert failed.has_failed
    assert "ended with 3" in failed.said
    assert not (tmp_path / "next").exists()


def test_an_environment_that_cannot_be_made_fails_its_step(ci: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shop = ci.Workshop(tmp_path)
    monkeypatch.setattr(shop, "_make", lambda name: shop._call(sys.executable, "-c", "raise SystemExit(1)"))
    shop.start(["full"])
    step = ci.Step(name="tried", title="a try", limit_s=9, needs=("full",), commands=((sys.executable, "-c", ""),))
    assert ci.run(step, shop).said.startswith("failed: an environment cannot be made")


def test_the_table_has_seconds_and_what_was_not_reached(ci: Any, tmp_path: Path):
    steps = [ci.Step(name=name, title="", limit_s=1) for name in ("first", "second")]
    first, second, everything = ci.table([ci.Outcome(step=steps[0], said="passed", seconds=7.4)], steps).splitlines()
    assert first.split() == ["first", "7", "s", "passed"]
    assert second.split() == ["second", "-", "s", "not", "reached"]
    assert everything.split() == ["all", "7", "s"]


def test_the_workflow_runs_every_step(ci: Any, tmp_path: Path):
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    named = {name for run in re.findall(r"run: \.ci/run (.+)", workflow) for name in run.split()}
    versions = re.findall(r'"(3\.\d+)"', re.findall(r"python: \[(.+)\]", workflow)[0])
    named |= {f"lean-{version}" for version in versions}
    assert named == {step.name for step in ci.steps(ci.Workshop(tmp_path))}


def test_each_python_that_is_promised_has_a_step(ci: Any):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert tuple(re.findall(r'Python :: (3\.\d+)"', project)) == ci.PYTHONS
