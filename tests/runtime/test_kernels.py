"""The variants for rankrt's own kernels: where they are taken, how they are loaded, and what is said of them."""

import logging
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from rankrt import ArtifactError, DeviceError, Reranker
from rankrt.artifact.manifest import Artifact, open_artifact, write_manifest
from rankrt.artifact.precisions import AskedSet, InstructionSet, Precision
from rankrt.backends.session import session_options
from rankrt.cli.main import main
from rankrt.files.cache import HostCache
from rankrt.host.cpu import Cores, Machine, this_machine
from rankrt.host.memory import mappings
from rankrt.kernels import kernels_in_use
from rankrt.loading import kernels as of_this_process
from rankrt.loading.choose import choose
from rankrt.loading.kernels import NO_KERNELS, Kernels, these_kernels
from tests.runtime.test_processes import in_child, needs_fork
from tests.support import in_threads, tiny_artifact

VNNI, AMX = ("avx2", "avx512_vnni"), ("avx2", "avx512_vnni", "amx_int8")
AVX512_KERNELS, AVX2_KERNELS = Kernels(instruction_set="avx512_vnni"), Kernels(instruction_set="avx2")
AVX_VNNI_KERNELS = Kernels(instruction_set="avx_vnni")
PAIRS = [("zero", "one two three " * n) for n in range(1, 40)]
needs_kernels = pytest.mark.skipif(kernels_in_use() is None, reason="no library of kernels for this processor")
first_here = pytest.mark.skipif(
    these_kernels().why_not_first("int8", this_machine()) is not None, reason="kernels are not first on this processor"
)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """An artifact with all graphs of fp32 and int8."""
    made = tiny_artifact(tmp_path / "all", precisions=("fp32", "int8"), for_kernels=("fp32", "int8"))
    fp32, avx2, *own = made.manifest.variants
    return with_variants(made, fp32, avx2, msgspec.structs.replace(avx2, instruction_set="vnni"), *own)


def with_variants(artifact: Artifact, *variants: object) -> Artifact:
    write_manifest(msgspec.structs.replace(artifact.manifest, variants=variants), artifact.folder)
    return open_artifact(artifact.folder)


def only(artifact: Artifact, *names: str) -> Artifact:
    return with_variants(artifact, *(v for v in artifact.manifest.variants if v.name in names))


def machine(*instructions: str) -> Machine:
    cores = Cores(n=1, limited_by="a test")
    return Machine(processor="A Processor", architecture="x86_64", instructions=instructions, cores=cores)


@pytest.mark.parametrize("precision", ["auto", "int8"])
@pytest.mark.parametrize(
    ("instructions", "kernels", "name"),
    [
        (VNNI, AVX512_KERNELS, "cpu-int8-kernels"),
        (("avx2", "avx_vnni"), AVX_VNNI_KERNELS, "cpu-int8-kernels"),
        (VNNI, NO_KERNELS, "cpu-int8-vnni"),
        (("asimd", "asimddp"), NO_KERNELS, "cpu-int8-vnni"),
        (AMX, AVX512_KERNELS, "cpu-int8-vnni"),
        (("avx2",), AVX2_KERNELS, "cpu-int8-avx2"),
        (AMX, replace(AVX512_KERNELS, is_forced=True), "cpu-int8-kernels"),
        (VNNI, replace(AVX2_KERNELS, is_forced=True), "cpu-int8-kernels"),
    ],
)
def test_kernels_go_first_where_they_run_at_full_speed_or_are_forced(
    artifact: Artifact, instructions: tuple[str, ...], kernels: Kernels, name: str, precision: Precision
):
    assert choose(artifact, precision, machine(*instructions), kernels=kernels).name == name


@pytest.mark.parametrize(
    ("instruction_set", "name"), [("vnni", "cpu-int8-vnni"), ("avx2", "cpu-int8-avx2"), ("kernels", "cpu-int8-kernels")]
)
@pytest.mark.parametrize("instructions", [VNNI, AMX, ("avx2",)])
def test_the_graph_that_is_asked_for_is_taken(
    artifact: Artifact, instruction_set: InstructionSet, name: str, instructions: tuple[str, ...]
):
    assert choose(artifact, "int8", machine(*instructions), instruction_set, kernels=AVX2_KERNELS).name == name


@pytest.mark.parametrize(
    ("instructions", "kernels", "name"),
    [
        (VNNI, AVX512_KERNELS, "cpu-fp32-kernels"),
        (AMX, AVX512_KERNELS, "cpu-fp32-kernels"),
        (("avx2", "avx_vnni"), AVX_VNNI_KERNELS, "cpu-fp32"),
        (("avx2",), AVX2_KERNELS, "cpu-fp32"),
        (VNNI, NO_KERNELS, "cpu-fp32"),
        (("asimd", "asimddp"), NO_KERNELS, "cpu-fp32"),
        ((), NO_KERNELS, "cpu-fp32"),
        (("avx2",), replace(AVX2_KERNELS, is_forced=True), "cpu-fp32-kernels"),
    ],
)
def test_in_fp32_kernels_go_first_with_avx512_or_where_they_are_forced(
    artifact: Artifact, instructions: tuple[str, ...], kernels: Kernels, name: str
):
    of_fp32 = only(artifact, "cpu-fp32", "cpu-fp32-kernels")
    assert choose(of_fp32, "auto", machine(*instructions), kernels=kernels).name == name
    assert choose(artifact, "fp32", machine(*instructions), kernels=kernels).name == name


@pytest.mark.parametrize(("asked", "name"), [("kernels", "cpu-fp32-kernels"), ("any", "cpu-fp32")])
@pytest.mark.parametrize("kernels", [AVX512_KERNELS, AVX2_KERNELS])
def test_the_graph_of_fp32_that_is_asked_for_is_taken(artifact: Artifact, asked: AskedSet, name: str, kernels: Kernels):
    assert choose(artifact, "fp32", machine(*VNNI), asked, kernels=kernels).name == name


def test_only_graphs_for_any_processor_are_taken_if_these_are_asked_for(artifact: Artifact):
    assert choose(artifact, "auto", machine(*VNNI), "any", kernels=AVX512_KERNELS).name == "cpu-fp32"
    with pytest.raises(DeviceError, match=r"cpu-int8-\w+ is for '\w+'; leave instruction_set='any' out"):
        Reranker.load(artifact.folder, precision="int8", instruction_set="any")


def test_an_older_artifact_has_no_kernels_in_fp32(artifact: Artifact):
    older = only(artifact, "cpu-fp32", "cpu-int8-kernels")
    assert choose(older, "fp32", machine(*VNNI), kernels=AVX512_KERNELS).name == "cpu-fp32"
    if kernels_in_use() is not None:
        with pytest.raises(DeviceError, match=r"cpu-fp32 is for any processor; leave instruction_set='kernels' out"):
            Reranker.load(older.folder, precision="fp32", instruction_set="kernels")


def test_kernels_that_are_asked_for_and_not_here_are_refused(artifact: Artifact, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(of_this_process, "kernels_in_use", lambda: None)
    monkeypatch.setattr(of_this_process, "LIBRARY", artifact.folder / "missing.so")
    with pytest.raises(
        DeviceError, match=r"instruction_set='kernels', but this installation has no library of kernels, which .* leave"
    ):
        Reranker.load(artifact.folder, instruction_set="kernels")


def test_without_a_library_the_stock_graph_is_taken_in_silence(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(of_this_process, "kernels_in_use", lambda: None)
    with caplog.at_level(logging.WARNING), Reranker.load(artifact.folder, precision="int8") as reranker:
        assert reranker.variant.instruction_set in ("vnni", "avx2")
        assert reranker.score([("one", "two three")]).tolist() == [6.0]
    assert not caplog.text


@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_an_artifact_for_kernels_alone_is_refused_without_them(artifact: Artifact, precision: Precision):
    alone = only(artifact, "cpu-int8-kernels")
    with pytest.raises(
        DeviceError,
        match=r"has cpu-int8-kernels for rankrt's own kernels, but .* Export the graphs for other processors as well:"
        " rankrt export tests/tiny FOLDER --precision int8",
    ):
        choose(alone, precision, machine(*VNNI))


def test_where_another_graph_would_go_first_and_is_not_there_kernels_are_taken(artifact: Artifact):
    assert (
        choose(only(artifact, "cpu-int8-kernels"), "auto", machine(*AMX), kernels=AVX512_KERNELS).name
        == "cpu-int8-kernels"
    )


def test_kernels_that_take_the_time_of_fp32_are_taken_by_name_only(artifact: Artifact):
    both = only(artifact, "cpu-fp32", "cpu-int8-kernels")
    assert choose(both, "auto", machine("avx2"), kernels=AVX2_KERNELS).name == "cpu-fp32"
    assert choose(both, "int8", machine("avx2"), kernels=AVX2_KERNELS).name == "cpu-int8-kernels"


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("prepare", [True, False])
def test_a_graph_with_kernels_scores_as_the_others_and_nothing_is_prepared(
    artifact: Artifact,
    precision: Precision,
    n_threads: int,
    prepare: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    with Reranker.load(
        artifact.folder, instruction_set="kernels", precision=precision, n_threads=n_threads, prepare=prepare
    ) as own:
        scores = own.score(PAIRS)
        capacity = own._scorer().backend.capacity
    assert (own.variant.name, capacity.n_narrow) == (f"cpu-{precision}-kernels", n_threads)
    assert [item.variant for item in HostCache().items() if item.kind == "prepared"] == []
    with Reranker.load(artifact.folder, precision="fp32", instruction_set="any") as fp32:
        assert fp32.variant.name == "cpu-fp32"
        assert scores.tolist() == fp32.score(PAIRS).tolist()


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells what is mapped in /proc")
def test_both_sessions_map_the_weights_of_the_artifact(artifact: Artifact):
    with Reranker.load(artifact.folder, precision="int8", instruction_set="kernels", n_threads=2) as reranker:
        reranker.score(PAIRS)
        file = str((artifact.folder / "points.cpu-int8-kernels.data").resolve())
        found = [mapping for mapping in mappings() if mapping.file == file]
    panels = [mapping for mapping in found if mapping.n_bytes >= 1 << 16]
    assert len(panels) >= 2, "the table and the panels, side by side or apart, in each of two sessions"
    assert sum(mapping.anonymous_kb for mapping in found) == 0, "nothing of them is copied"


@needs_kernels
def test_threads_that_share_a_graph_with_kernels_get_the_same_scores(artifact: Artifact):
    with Reranker.load(artifact.folder, precision="int8", instruction_set="kernels", n_threads=2) as reranker:
        expected = reranker.score(PAIRS).tobytes()
        assert in_threads(6, lambda i: reranker.score(PAIRS).tobytes()) == [expected] * 6


@needs_kernels
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_scores_with_kernels_as_its_parent(artifact: Artifact):
    with Reranker.load(artifact.folder, precision="int8", instruction_set="kernels", n_threads=2) as reranker:
        expected = reranker.score(PAIRS).tobytes()

        def work() -> None:
            assert reranker.score(PAIRS).tobytes() == expected

        assert in_child(work) == 0
        assert reranker.score(PAIRS).tobytes() == expected


@needs_kernels
def test_a_pickled_reranker_is_loaded_with_kernels_again(artifact: Artifact, monkeypatch: pytest.MonkeyPatch):
    with Reranker.load(artifact.folder, precision="int8", instruction_set="kernels") as reranker:
        pickled = pickle.dumps(reranker)
    with pickle.loads(pickled) as again:
        assert again.variant.name == "cpu-int8-kernels"
    monkeypatch.setattr(of_this_process, "kernels_in_use", lambda: None)
    with pytest.raises(DeviceError, match="instruction_set='kernels', but "):
        pickle.loads(pickled)


@needs_kernels
@pytest.mark.parametrize("asked", ["kernels", "any"])
def test_a_pickled_reranker_in_fp32_is_loaded_with_the_same_graph_again(artifact: Artifact, asked: AskedSet):
    with Reranker.load(artifact.folder, precision="fp32", instruction_set=asked) as reranker:
        pickled, name = pickle.dumps(reranker), reranker.variant.name
    with pickle.loads(pickled) as again:
        assert again.variant.name == name
        assert again.with_precision("int8").variant.precision == "int8"


@needs_kernels
def test_a_changed_file_of_a_graph_with_kernels_is_refused(artifact: Artifact):
    path = artifact.folder / "points.cpu-int8-kernels.data"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ArtifactError, match="is not the file that was exported"):
        Reranker.load(artifact.folder, precision="int8", instruction_set="kernels")


def test_a_library_that_onnx_runtime_cannot_load_is_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rankrt.backends.session.LIBRARY", tmp_path / "missing.so")
    with pytest.raises(DeviceError, match=r"cannot load rankrt's kernels: .*missing"):
        session_options(1, "kernels")


SCORES = """
import sys
from rankrt import Reranker
with Reranker.load(sys.argv[1], precision="int8") as reranker:
    print(reranker.variant.name, reranker.score([("one", "two three"), ("four", "")]).tobytes().hex())
"""


def scores_with(kernels: str, artifact: Artifact) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCORES, str(artifact.folder)]
    environment = {**os.environ, "RANKRT_KERNELS": kernels}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@first_here
def test_an_instruction_set_can_be_forced_and_changes_no_bit(artifact: Artifact):
    forced, found = scores_with("avx2", artifact), scores_with("", artifact)
    assert forced.stdout == found.stdout
    assert forced.stdout.startswith("cpu-int8-kernels ")


def test_an_instruction_set_that_is_not_here_is_an_error(artifact: Artifact):
    refused = scores_with("avx9", artifact)
    assert "DeviceError: RANKRT_KERNELS=avx9" in refused.stderr


@first_here
def test_the_commands_say_that_kernels_are_used(artifact: Artifact, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", str(artifact.folder)]) == 0
    found = capsys.readouterr().out
    assert f"rankrt's own for {'fp32 and ' * (kernels_in_use() == 'avx512_vnni')}int8, by {kernels_in_use()}" in found
    assert f"precision='auto' takes cpu-int8-kernels here, with rankrt's kernels for {kernels_in_use()}" in found
    assert main(["prepare", str(artifact.folder)]) == 0
    assert "cpu-int8-kernels is ready on this host; it runs from the artifact as it is" in capsys.readouterr().out
    assert main(["info", str(artifact.folder)]) == 0
    assert (
        "\ncpu-int8-kernels: by rankrt's own kernels; rankrt doctor says whether they run here"
        in capsys.readouterr().out
    )


def test_doctor_says_why_kernels_are_not_used(
    artifact: Artifact, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(of_this_process, "kernels_in_use", lambda: None)
    monkeypatch.setattr(of_this_process, "LIBRARY", artifact.folder / "missing.so")
    assert main(["doctor", str(artifact.folder)]) == 0
    found = capsys.readouterr().out
    assert (
        "ONNX Runtime's go before rankrt's own for fp32 and int8: this installation has no library of kernels" in found
    )
    assert "note  cpu-int8-kernels cannot run here: this installation has no library of kernels" in found


@pytest.mark.parametrize(
    ("precision", "kernels", "instructions", "reason"),
    [
        ("int8", AVX512_KERNELS, AMX, "ONNX Runtime uses AMX here, which the kernels do not"),
        ("int8", AVX2_KERNELS, ("avx2",), "the processor lacks VNNI, without which they are as slow as fp32"),
        ("int8", AVX512_KERNELS, VNNI, None),
        ("int8", replace(AVX2_KERNELS, is_forced=True), AMX, None),
        ("fp32", AVX512_KERNELS, AMX, None),
        ("fp32", AVX_VNNI_KERNELS, ("avx2", "avx_vnni"), "without AVX-512 they were not measured in fp32"),
        ("fp32", replace(AVX2_KERNELS, is_forced=True), ("avx2",), None),
    ],
)
def test_the_reason_why_kernels_are_not_first(
    precision: Precision, kernels: Kernels, instructions: tuple[str, ...], reason: str | None
):
    assert kernels.why_not_first(precision, machine(*instructions)) == reason


def test_doctor_fails_where_the_variable_names_no_kernels(artifact: Artifact):
    """In a process of its own, because a process looks at the variable once."""
    command = [sys.executable, "-m", "rankrt", "doctor", str(artifact.folder)]
    environment = {**os.environ, "RANKRT_KERNELS": "avx9"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "fail  kernels    RANKRT_KERNELS=avx9" in done.stdout
    assert done.returncode == 1
