"""Which variant a host uses, and ranking with two of them."""

import logging
from contextlib import nullcontext
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rankrt import DeviceError, InputError, Reranker
from rankrt.artifact.manifest import Artifact, open_artifact, write_manifest
from rankrt.artifact.precisions import InstructionSet
from rankrt.backends.session import session_options
from rankrt.host.cpu import Cores, Machine
from rankrt.host.device import Device
from rankrt.host.host import Host
from rankrt.loading.choose import choose, place_variant
from tests.support import POINTS, VERIFICATION, tiny_artifact

# The int8 variant answers up to half a point too much or too little: "three" is worth 2.6, "two" 2.4.
ROUGH = np.array([0, 0, 0, 0, 0, 1.1, 2.4, 2.6, 4.4, np.nan], np.float32)
DRIFTING = msgspec.structs.replace(VERIFICATION, max_difference=0.5)


@pytest.fixture
def both(tmp_path: Path) -> Artifact:
    """An artifact whose int8 variant drifts by up to 0.5."""
    return tiny_artifact(
        tmp_path / "both", precisions=("fp32", "int8"), verification=DRIFTING, points={"int8": ROUGH, "fp32": POINTS}
    )


def machine(*instructions: str) -> Machine:
    cores = Cores(n=1, limited_by="a test")
    return Machine(processor="A Processor", architecture="x86_64", instructions=instructions, cores=cores)


def test_auto_takes_int8_where_the_processor_gains_from_it(both: Artifact):
    assert choose(both, "auto", machine("avx2")).precision == "int8"
    assert choose(both, "auto", machine("asimd", "asimddp")).precision == "int8"


def test_auto_takes_fp32_and_says_so_where_it_gains_nothing(both: Artifact, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert choose(both, "auto", machine("asimd")).precision == "fp32"
    assert "A Processor has no fast products of bytes (AVX2, or asimddp on Arm): using fp32, not int8" in caplog.text


def test_int8_by_name_is_refused_on_such_a_processor(both: Artifact):
    with pytest.raises(DeviceError, match=r"A Processor has no fast products of bytes .* use precision='fp32'"):
        choose(both, "int8", machine())


@pytest.fixture
def for_each(tmp_path: Path) -> Artifact:
    """An artifact with an int8 variant for each instruction set, over the same graph, and one in fp32."""
    artifact = tiny_artifact(tmp_path / "for_each", precisions=("fp32", "int8"))
    fp32, int8 = artifact.manifest.variants
    variants = [msgspec.structs.replace(int8, instruction_set=name) for name in ("vnni", "avx2")]
    write_manifest(msgspec.structs.replace(artifact.manifest, variants=(fp32, *variants)), artifact.folder)
    return open_artifact(artifact.folder)


@pytest.mark.parametrize(
    ("instructions", "name"),
    [
        (("avx2", "fma"), "cpu-int8-avx2"),
        (("avx2", "avx512f", "avx512bw"), "cpu-int8-avx2"),
        (("avx2", "avx_vnni"), "cpu-int8-vnni"),
        (("avx2", "avx512f", "avx512_vnni"), "cpu-int8-vnni"),
        (("avx2", "avx512_vnni", "amx_int8"), "cpu-int8-vnni"),
        (("asimd", "asimddp"), "cpu-int8-vnni"),
        (("asimd",), "cpu-fp32"),
        ((), "cpu-fp32"),
    ],
)
def test_the_graph_is_the_one_for_the_processor(for_each: Artifact, instructions: tuple[str, ...], name: str):
    assert choose(for_each, "auto", machine(*instructions)).name == name


def test_an_artifact_of_an_older_format_has_one_graph_for_all(both: Artifact):
    write_manifest(msgspec.structs.replace(both.manifest, format_version=2), both.folder)
    older = open_artifact(both.folder)
    for instructions in (("avx2",), ("avx2", "avx512_vnni")):
        assert choose(older, "int8", machine(*instructions)).name == "cpu-int8-avx2"
    with pytest.raises(DeviceError, match="has no int8 for cpu with instruction_set='vnni'; it has cpu-fp32"):
        Reranker.load(older.folder, precision="int8", instruction_set="vnni")


@pytest.mark.parametrize(
    ("instructions", "asked"),
    [(("avx2",), "vnni"), (("avx2", "avx_vnni"), "avx2"), (("avx2", "avx512_vnni"), "vnni"), (("avx2",), None)],
)
def test_a_graph_that_is_asked_for_is_taken_without_a_word(
    for_each: Artifact,
    caplog: pytest.LogCaptureFixture,
    instructions: tuple[str, ...],
    asked: InstructionSet | None,
):
    """An export and `rankrt doctor` ask for every graph, so a notice would be one that no user has asked for."""
    with caplog.at_level(logging.WARNING):
        assert choose(for_each, "int8", machine(*instructions), asked).instruction_set == (asked or "avx2")
    assert not caplog.text


def test_an_instruction_set_is_an_error_where_it_would_be_ignored(for_each: Artifact):
    with pytest.raises(DeviceError, match=r"cpu-fp32 is for any processor; leave instruction_set='avx2' out"):
        Reranker.load(for_each.folder, precision="fp32", instruction_set="avx2")
    with pytest.raises(InputError, match=r"instruction_set='neon', expected one of 'kernels', 'vnni', 'avx2', 'any'"):
        Reranker.load(for_each.folder, instruction_set="neon")  # type: ignore[arg-type]


def test_an_int8_graph_that_was_asked_for_is_refined_in_fp32(for_each: Artifact):
    with Reranker.load(for_each.folder, precision="int8", instruction_set="avx2") as reranker:
        assert reranker.with_precision("fp32").variant.name == "cpu-fp32"


def test_int8_that_was_not_verified_is_not_taken(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "unverified", precisions=("int8",), verification=None)
    with pytest.raises(DeviceError, match=r"no verified variant for cpu; it has cpu-int8-avx2 \(not verified\)"):
        choose(artifact, "auto", machine("avx2"))


def test_refining_gives_the_exact_scores_and_order_of_the_best(both: Artifact):
    with Reranker.load(both.folder, precision="int8") as reranker:
        documents = ["one", "two two", "three two", "four four four", "two three"]
        ranking = reranker.rank("zero", documents, top_n=2, refine="fp32")
        exact = reranker.with_precision("fp32").rank("zero", documents, top_n=2)
    assert [(hit.index, hit.score) for hit in ranking] == [(hit.index, hit.score) for hit in exact]
    assert ranking.n_refined == 4  # with half a point more, "two three" and "two two" could have been second; "one" not


def test_what_refining_took_is_counted(both: Artifact):
    with Reranker.load(both.folder, precision="int8") as reranker:
        plain = reranker.rank("zero", ["one", "four"], top_n=1)
        refined = reranker.rank("zero", ["one", "four"], top_n=1, refine="fp32")
    assert (plain.n_refined, refined.n_refined) == (0, 1)
    assert refined.n_tokens == plain.n_tokens + 6
    assert plain[0].score == pytest.approx(4.4)
    assert refined[0].score == 4.0


def test_refining_in_the_precision_that_was_named_is_refused(both: Artifact, artifact: Artifact):
    with (
        Reranker.load(both.folder, precision="fp32") as reranker,
        pytest.raises(InputError, match="refine='fp32', but cpu-fp32 scores in that precision; drop refine"),
    ):
        reranker.rank("zero", ["one", "two"], top_n=1, refine="fp32")
    with Reranker.load(artifact.folder) as reranker, pytest.raises(InputError, match="drop refine"):
        reranker.rank("zero", ["one", "two"], top_n=1, refine="fp32")


def test_refining_in_the_precision_that_auto_took_needs_no_second_pass(tmp_path: Path):
    """On a processor for int8 the same call would score again, so it is no mistake here."""
    artifact = tiny_artifact(tmp_path / "fp16", precisions=("fp32", "fp16"))
    with Reranker.load(artifact.folder) as reranker:
        assert reranker.variant.precision == "fp32"
        assert reranker.rank("zero", ["one", "two"], top_n=1, refine="fp32").n_refined == 0


def test_refining_no_documents_is_an_empty_ranking(both: Artifact):
    with Reranker.load(both.folder, precision="int8") as reranker:
        assert len(reranker.rank("zero", [], top_n=3, refine="fp32")) == 0


def test_refining_everything_is_refused(both: Artifact):
    with (
        Reranker.load(both.folder, precision="int8") as reranker,
        pytest.raises(InputError, match="refine needs top_n"),
    ):
        reranker.rank("zero", ["one"], refine="fp32")


def test_refining_in_a_precision_that_is_not_there_is_refused(both: Artifact):
    with (
        Reranker.load(both.folder, precision="int8") as reranker,
        pytest.raises(DeviceError, match="has no fp16 for cpu"),
    ):
        reranker.rank("zero", ["one"], top_n=1, refine="fp16")


def test_a_drift_that_nobody_measured_is_not_relied_on(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "unverified", precisions=("fp32", "int8"), verification=None)
    with (
        Reranker.load(artifact.folder, precision="int8") as reranker,
        pytest.raises(InputError, match="drift that was measured, and cpu-int8-avx2 was not verified"),
    ):
        reranker.rank("zero", ["one"], top_n=1, refine="fp32")


def test_a_second_precision_is_loaded_once_and_shared(both: Artifact):
    with Reranker.load(both.folder, precision="int8") as reranker:
        first, second = (reranker.with_precision("fp32") for _ in range(2))
        assert first._scorer().backend is second._scorer().backend


@pytest.mark.parametrize(("instructions", "is_widened"), [(("avx2",), True), (("avx2", "avx512_vnni"), False)])
def test_a_graph_for_vnni_has_its_weights_widened_only_where_there_is_none(
    for_each: Artifact, instructions: tuple[str, ...], is_widened: bool
):
    host = Host(machine=machine(*instructions), has_driver=False)
    vnni = next(variant for variant in for_each.manifest.variants if variant.instruction_set == "vnni")
    placement = place_variant(for_each, vnni, Device("cpu"), host)
    options = session_options(1, placement.form)
    with nullcontext() if is_widened else pytest.raises(RuntimeError, match="does not have"):
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
