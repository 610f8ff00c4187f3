"""bf16 by OpenVINO: the choice of it, what it is refused for, and scores that depend on their pair only."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rankrt import DeviceError, MissingExtra, Reranker, ScoreError
from rankrt.artifact.manifest import Artifact
from rankrt.backends import openvino
from rankrt.backends.batch import spread
from rankrt.backends.openvino import check_openvino, why_not_bf16
from rankrt.cli.main import main
from rankrt.host.cpu import Cores, Machine, this_machine
from rankrt.host.device import Device
from rankrt.host.host import Host, this_host
from rankrt.loading.choose import Asked, choose, place, place_variant
from rankrt.loading.measure import measure
from rankrt.loading.placement import Placement, Record
from rankrt.loading.prepared import Prepared, find_record, key_of
from rankrt.text.pairs import Encoded
from tests.support import POINTS, in_threads, tiny_artifact

REASON = why_not_bf16(this_machine())
needs_bf16 = pytest.mark.skipif(REASON is not None, reason=str(REASON))
PAIRS = [("one", "two " * n + "three") for n in (1, 3, 50, 2, 12, 30, 1, 7)]
SCORES = [1 + 2 * n + 3 for n in (1, 3, 50, 2, 12, 30, 1, 7)]


@pytest.fixture(autouse=True)
def _own_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny artifact is the same in every test, and so would be what is remembered of it."""
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def both(tmp_path: Path) -> Artifact:
    return tiny_artifact(tmp_path / "both", precisions=("fp32", "bf16"))


@pytest.fixture
def in_bf16(both: Artifact) -> Iterator[Reranker]:
    with Reranker.load(both.folder, precision="bf16") as loaded:
        yield loaded


def machine(*instructions: str) -> Machine:
    cores = Cores(n=1, limited_by="a test")
    return Machine(processor="A Processor", architecture="x86_64", instructions=instructions, cores=cores)


def placed(artifact: Artifact, host: Host | None = None) -> Placement:
    return place_variant(artifact, artifact.manifest.variants[1], Device("cpu"), host or this_host())


def record(artifact: Artifact, relative_time: float, host: Host) -> None:
    """Record that bf16 was measured on a host."""
    key, prepared = key_of(placed(artifact, host)), Prepared()
    found = Record(
        key=key, max_length=None, engines=(), n_examples=1, max_difference=0, limit=1, relative_time=relative_time
    )
    with prepared.cache.filling(key):
        prepared.write(found)


@pytest.mark.parametrize(
    ("instructions", "by"),
    [
        (("avx2",), None),
        (("avx512f", "avx512_vnni"), None),
        (("avx512f", "avx512_bf16"), "AVX-512 BF16"),
        (("avx512f", "avx512_bf16", "amx_bf16"), "AMX"),
    ],
)
def test_a_machine_says_by_what_it_multiplies_brain_floats(instructions: tuple[str, ...], by: str | None):
    assert machine(*instructions).multiplies_bf16 == by


def test_bf16_is_refused_on_a_processor_without_it(both: Artifact):
    with pytest.raises(
        DeviceError,
        match=r"^A Processor does not multiply brain floats \(by AMX or AVX-512 BF16\): bf16 would be slower than fp32"
        r" here; use precision='fp32'$",
    ):
        choose(both, "bf16", machine("avx2", "avx512f"))


def test_an_artifact_without_bf16_says_how_to_get_it(artifact: Artifact):
    with pytest.raises(DeviceError, match=r"has no bf16 for cpu; it has cpu-fp32\..*FOLDER --precision bf16$"):
        choose(artifact, "bf16", machine("avx512_bf16"))


def test_auto_takes_bf16_only_if_it_was_measured_and_is_faster(both: Artifact):
    host = Host(machine=machine("avx2", "avx512_bf16"), has_driver=False)
    assert place(both, Asked(), host).variant.name == "cpu-fp32"
    record(both, 0.97, host)
    assert place(both, Asked(), host).variant.name == "cpu-fp32"
    record(both, 0.5, host)
    assert place(both, Asked(), host).variant.name == "cpu-bf16"
    assert place(both, Asked(precision="fp32"), host).variant.name == "cpu-fp32"


def test_what_one_processor_measured_says_nothing_of_another(both: Artifact):
    record(both, 0.5, Host(machine=machine("avx2", "avx512_bf16"), has_driver=False))
    other = Host(machine=machine("avx2", "avx512_bf16", "amx_bf16"), has_driver=False)
    assert place(both, Asked(), other).variant.name == "cpu-fp32"


def test_int8_goes_before_bf16(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "three", precisions=("fp32", "bf16", "int8"))
    assert choose(artifact, "auto", machine("avx2", "avx512_bf16"), faster=["cpu-bf16"]).precision == "int8"


def test_a_missing_engine_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openvino, "openvino_version", lambda: None)
    with pytest.raises(MissingExtra, match=r"which is not installed: pip install 'rankrt\[cpu,openvino\]'"):
        check_openvino()


def test_an_engine_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openvino, "openvino_version", lambda: "2025.3.0")
    with pytest.raises(DeviceError, match=r"needs OpenVINO 2026\.4 or newer, but 2025\.3\.0 is installed: pip install"):
        check_openvino()


def test_a_row_has_a_width_of_its_own_whatever_rows_are_beside_it():
    encoded = Encoded.of_rows([np.full(n, 5, np.int32) for n in (64, 1, 65, 128)])
    assert spread(encoded, np.array([0, 1]))["token_offset"].shape == (2, 64)
    assert spread(encoded, np.array([1]))["token_offset"].shape == (1, 64)
    assert spread(encoded, np.array([2, 3]))["token_offset"].shape == (2, 128)


@needs_bf16
def test_scores_are_those_of_the_graph(in_bf16: Reranker):
    assert in_bf16.variant.name == "cpu-bf16"
    assert in_bf16.score(PAIRS).tolist() == SCORES


@needs_bf16
def test_several_callers_at_once_get_their_own_scores(in_bf16: Reranker):
    found = in_threads(4, lambda i: in_bf16.score([PAIRS[i]] * 20).tolist())
    assert found == [[SCORES[i]] * 20 for i in range(4)]


@needs_bf16
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_loads_its_own_and_ends(both: Artifact):
    code = (
        "import os, sys; from rankrt import Reranker; r = Reranker.load(sys.argv[1], precision='bf16');"
        "pairs = [('one', 'two')]; print(r.score(pairs)); sys.stdout.flush(); child = os.fork();"
        "print(r.score(pairs)); sys.stdout.flush(); child and print(os.waitpid(child, 0)[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(both.folder)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["[3.]", "[3.]", "[3.]", "0"], done.stderr


@needs_bf16
def test_measuring_compares_scores_and_times_and_is_remembered(both: Artifact):
    assert find_record(key_of(placed(both))) is None
    found = measure(placed(both), 1)
    assert (found.n_examples, found.max_difference) == (1, 0.0)
    assert found.relative_time is not None
    assert found.relative_time > 0
    assert find_record(key_of(placed(both))) == found


def test_bf16_alone_cannot_be_measured(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "alone", precisions=("bf16",))
    alone = place_variant(artifact, artifact.manifest.variants[0], Device("cpu"), this_host())
    with pytest.raises(DeviceError, match=r"cpu-bf16 is measured beside fp32, .* with --precision fp32 bf16$"):
        measure(alone, 1)


@needs_bf16
def test_wrong_scores_are_not_recorded(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "wrong", precisions=("fp32", "bf16"), points={"bf16": POINTS * 2})
    with pytest.raises(ScoreError, match=r"cpu-bf16 differs .* by up to 6 on this processor \(limit 0\.001\)"):
        measure(placed(artifact), 1)
    assert find_record(key_of(placed(artifact))) is None


@needs_bf16
def test_preparing_and_examining_say_what_was_measured(both: Artifact, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", str(both.folder)]) == 0
    assert "cpu-bf16   was not measured here, so precision='auto' does not take it" in capsys.readouterr().out
    assert main(["prepare", str(both.folder), "--precision", "bf16"]) == 0
    assert "cpu-bf16 is ready on this host: 1 examples differ from PyTorch by up to 0.0e+00" in capsys.readouterr().out
    assert main(["doctor", str(both.folder)]) == 0
    assert "of fp32's time here" in capsys.readouterr().out


def test_doctor_says_what_the_processor_has(capsys: pytest.CaptureFixture[str]):
    main(["doctor"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[1] == "bf16")
    assert ("amx_bf16" if this_machine().multiplies_bf16 is None else str(this_machine().multiplies_bf16)) in line


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_the_engine_comes_only_to_users_who_asked_and_never_with_its_telemetry(
    both: Artifact, tmp_path: Path, precision: str
):
    package = tmp_path / "path" / "openvino_telemetry"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("print('telemetry was imported')")
    code = (
        "import sys; from rankrt import Reranker;"
        f"r = Reranker.load(sys.argv[1], precision={precision!r}); r.score([('one', 'two')]);"
        "print('openvino' in sys.modules, 'openvino_telemetry' in sys.modules)"
    )
    path = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(both.folder)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.stdout == f"{precision == 'bf16'} False\n"
