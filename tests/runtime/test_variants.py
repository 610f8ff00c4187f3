"""Which variant a host uses, and ranking with two of them."""

import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rankrt import DeviceError, InputError, Reranker
from rankrt.artifact import Artifact
from rankrt.machine import Cores, Machine
from rankrt.variants import choose
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
    assert "A Processor has no fast products of bytes: using fp32, not int8" in caplog.text


def test_int8_by_name_is_refused_on_such_a_processor(both: Artifact):
    with pytest.raises(DeviceError, match=r"A Processor has no fast products of bytes .* use precision='fp32'"):
        choose(both, "int8", machine())


def test_int8_that_was_not_verified_is_not_taken(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "unverified", precisions=("int8",), verification=None)
    with pytest.raises(DeviceError, match=r"no verified variant for cpu; it has cpu-int8 \(not verified\)"):
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


def test_refining_in_the_precision_that_is_loaded_changes_nothing(both: Artifact):
    with Reranker.load(both.folder, precision="fp32") as reranker:
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
        pytest.raises(InputError, match="cpu-int8 was not verified"),
    ):
        reranker.rank("zero", ["one"], top_n=1, refine="fp32")


def test_a_second_precision_is_loaded_once_and_shared(both: Artifact):
    with Reranker.load(both.folder, precision="int8") as reranker:
        first, second = (reranker.with_precision("fp32") for _ in range(2))
        assert first._backend is second._backend
