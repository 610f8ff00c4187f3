"""What a run would do once is done beforehand, and what cannot be had is said."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import prepare
from benchmarks.harness.lab import Lab
from benchmarks.systems import Entry
from tests.benchmarks.conftest import CHECKPOINT, STEADY

NEVER = "tests.benchmarks.fakes:NeverLoads"


@pytest.fixture(autouse=True)
def _no_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    none: Mapping[str, Entry] = {}
    monkeypatch.setattr(prepare, "CEILINGS", none)


def test_each_system_is_loaded_once_or_says_why_not(lab: Lab):
    steady, never = prepare.prepare_all(lab, [STEADY, NEVER])
    assert steady.startswith(f"{STEADY}: loads in ")
    assert never == f"{NEVER}: ValueError: this model has no head (status 1)"


def test_a_name_or_a_model_that_means_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert prepare.main(["--systems", STEADY, "--model", str(tmp_path)]) == 1
    assert "is not a checkpoint" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare.main(["--systems", "tensorflow", "--model", str(CHECKPOINT)])
    assert "'tensorflow' is not a system" in capsys.readouterr().err
