"""The library of kernels as the runtime finds it: which instruction set it uses, and what cannot be used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rankrt.kernels
from rankrt import RankrtError
from rankrt.kernels import INSTRUCTION_SETS, kernels_in_use

SOURCES = Path(__file__).resolve().parents[2] / "kernels"
needs_library = pytest.mark.skipif(kernels_in_use.__wrapped__() is None, reason="no kernels on this system")


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKRT_KERNELS", raising=False)


@needs_library
def test_an_instruction_set_is_used_as_asked_or_refused_if_the_processor_lacks_it():
    # The library chooses once a process.
    program = (
        "from rankrt import DeviceError, kernels\n"
        "try: print(kernels.kernels_in_use())\n"
        "except DeviceError as error: print(error)"
    )
    for name in INSTRUCTION_SETS:
        environment = os.environ | {"RANKRT_KERNELS": name}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        answer = done.stdout.strip()
        is_lacking = answer.startswith(f"RANKRT_KERNELS={name}: this processor does not have it")
        assert answer == name or (is_lacking and name != "avx2"), done.stderr


def test_an_unknown_instruction_set_is_refused_with_the_names_of_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANKRT_KERNELS", "avx3")
    with pytest.raises(RankrtError, match=r"RANKRT_KERNELS=avx3: .*avx512_vnni, avx_vnni, avx2"):
        kernels_in_use.__wrapped__()


def test_a_library_that_is_missing_or_cannot_be_loaded_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rankrt.kernels, "LIBRARY", tmp_path / "rankrt_kernels.so")
    assert kernels_in_use.__wrapped__() is None
    (tmp_path / "rankrt_kernels.so").write_bytes(b"not a library")
    assert kernels_in_use.__wrapped__() is None


@pytest.mark.skipif(not SOURCES.exists(), reason="needs the repository")
def test_the_names_are_those_of_the_sources():
    files = {file.stem for file in (SOURCES / "instruction_sets").glob("*.cpp")} - {"choose"}
    assert set(INSTRUCTION_SETS) == files
