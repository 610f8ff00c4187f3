"""Where a model runs: what "auto" takes and says, and what is refused with the way out."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer

from rankrt import DeviceError, InputError, Reranker
from rankrt.artifact.manifest import Artifact, Target
from rankrt.host.device import Device
from rankrt.loading.build import build
from rankrt.loading.builds import Builds, built_for
from rankrt.loading.choose import place, variants_for
from rankrt.loading.open import open_tokenizer
from rankrt.text.tokenizers import LibraryTokenizer
from rankrt.text.unigram import UnigramTokenizer
from tests.runtime.gpus import compute_on_the_cpu, gpus, show
from tests.runtime.test_unigram_tokenizer import description
from tests.runtime.test_variants import machine
from tests.support import VERIFICATION, tiny_artifact

CPU = machine("avx2")
TARGETS: tuple[Target, ...] = ("cpu", "cuda", "tensorrt")


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_on_the_cpu(monkeypatch, "NVIDIA H100", "NVIDIA L4")


@pytest.fixture
def unverified(tmp_path: Path) -> Artifact:
    """As a host without a GPU exports it: nothing for GPUs is verified."""
    return tiny_artifact(tmp_path / "unverified", targets=TARGETS, precisions=("fp32", "fp16"))


@pytest.fixture
def verified(tmp_path: Path) -> Artifact:
    return tiny_artifact(
        tmp_path / "verified", targets=TARGETS, precisions=("fp32", "fp16"), gpu_verification=VERIFICATION
    )


@pytest.fixture
def only_cpu(tmp_path: Path) -> Artifact:
    return tiny_artifact(tmp_path / "cpu")


def build_all(artifact: Artifact, device: Device) -> None:
    for variant in variants_for(artifact, device, "auto"):
        build(artifact, variant, device)


@pytest.mark.usefixtures("on_gpu")
def test_auto_takes_a_gpu_that_has_a_verified_variant(verified: Artifact):
    assert place(verified, None, "auto", CPU).name == "cuda-fp16"
    assert place(verified, None, "fp32", CPU).name == "cuda-fp32"


@pytest.mark.usefixtures("on_gpu")
def test_auto_takes_the_cpu_and_says_why_where_nothing_is_verified(unverified: Artifact, caplog):
    with caplog.at_level(logging.WARNING):
        assert place(unverified, None, "auto", CPU).name == "cpu-fp32"
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("this host has an NVIDIA driver, but the CPU is used: cuda-fp16 was never verified")
    assert f"rankrt build {unverified.folder} --target cuda" in said
    assert f"rankrt build {unverified.folder} --target tensorrt" in said


@pytest.mark.usefixtures("on_gpu")
def test_auto_takes_nothing_unverified_even_if_its_precision_is_named(unverified: Artifact):
    assert place(unverified, None, "fp16", CPU).name == "cpu-fp16"
    assert place(unverified, Device("cuda"), "fp16", CPU).name == "cuda-fp16"


@pytest.mark.usefixtures("on_gpu")
def test_auto_says_that_an_artifact_has_nothing_for_a_gpu(only_cpu: Artifact, caplog):
    with caplog.at_level(logging.WARNING):
        assert place(only_cpu, None, "auto", CPU).name == "cpu-fp32"
    assert "has no variant for cuda; it has cpu-fp32. Export one: rankrt export tests/tiny" in caplog.text


def test_auto_says_that_the_engine_cannot_use_the_gpu(verified: Artifact, monkeypatch, caplog):
    show(monkeypatch, gpus("NVIDIA H100"))
    monkeypatch.setattr("rankrt.host.gpus.find_gpus", _never)  # CUDA is not initialised where it is not used
    monkeypatch.setattr("rankrt.backends.providers.import_onnxruntime", lambda: _OnlyCpu)
    with caplog.at_level(logging.WARNING):
        assert place(verified, None, "auto", CPU).name == "cpu-fp32"
    assert "but the CPU is used: device 'cuda:0' needs CUDAExecutionProvider" in caplog.text
    assert "pip install 'rankrt[gpu]'" in caplog.text


def _never() -> None:
    raise AssertionError("the driver was asked")


class _OnlyCpu:
    @staticmethod
    def get_available_providers() -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_host_without_a_gpu_uses_the_cpu_and_says_nothing(verified: Artifact, monkeypatch, caplog):
    monkeypatch.setattr("rankrt.host.gpus.find_gpus", _never)
    monkeypatch.setattr("rankrt.host.gpus.has_driver", lambda: False)
    with caplog.at_level(logging.INFO):
        assert place(verified, None, "auto", CPU).name == "cpu-fp32"
    assert caplog.records == []


@pytest.mark.usefixtures("on_gpu")
def test_the_cpu_by_name_is_the_cpu(verified: Artifact, caplog):
    with caplog.at_level(logging.INFO):
        assert place(verified, Device("cpu"), "auto", CPU).name == "cpu-fp32"
    assert caplog.records == []


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    ("make", "device", "message"),
    [
        ("only_cpu", "cuda", r"has no variant for cuda; it has cpu-fp32\. Export one: rankrt export .* --target cuda"),
        ("only_cpu", "tensorrt", r"has no variant for tensorrt; .* --target tensorrt"),
        ("unverified", "cuda", r"cuda-fp16 was never verified, .* rankrt build \S+ --target cuda"),
        ("unverified", "cuda:1", r"rankrt build \S+ --target cuda --device 1"),
        ("verified", "tensorrt", r"tensorrt-fp16 has no engines here, .* rankrt build \S+ --target tensorrt"),
    ],
)
def test_what_cannot_be_had_by_name_is_refused_with_the_way_out(make: str, device: str, message: str, request):
    artifact: Artifact = request.getfixturevalue(make)
    with pytest.raises(DeviceError, match=message):
        Reranker.load(artifact.folder, device=device)


@pytest.mark.usefixtures("on_gpu")
def test_a_precision_that_is_not_there_is_refused(verified: Artifact):
    with pytest.raises(DeviceError, match="has no variant for cuda in int8"):
        Reranker.load(verified.folder, device="cuda", precision="int8")


@pytest.mark.usefixtures("on_gpu")
def test_an_unverified_variant_runs_where_its_precision_is_named(unverified: Artifact):
    with Reranker.load(unverified.folder, device="cuda", precision="fp16") as reranker:
        assert reranker.score([("one", "two")]).tolist() == [3.0]


@pytest.mark.usefixtures("on_gpu")
def test_a_build_on_this_host_makes_a_variant_usable(unverified: Artifact):
    build_all(unverified, Device("cuda"))
    with Reranker.load(unverified.folder) as reranker:
        assert repr(reranker) == "Reranker('tiny', cuda-fp16 on cuda:0, max_length=64)"
        assert reranker.device == Device("cuda", 0)


@pytest.mark.usefixtures("on_gpu")
def test_a_build_is_for_one_gpu(unverified: Artifact):
    build_all(unverified, Device("tensorrt", 0))
    assert place(unverified, Device("tensorrt"), "auto", CPU).name == "tensorrt-fp16"
    with pytest.raises(DeviceError, match=r"built for something else \(gpu NVIDIA L4 instead of NVIDIA H100\)"):
        place(unverified, Device("tensorrt", 1), "auto", CPU)


@pytest.mark.usefixtures("on_gpu")
def test_another_driver_asks_for_another_build(unverified: Artifact, monkeypatch):
    build_all(unverified, Device("tensorrt"))
    show(monkeypatch, replace(gpus("NVIDIA H100"), driver="590.1"))
    with pytest.raises(DeviceError, match=r"\(driver 590\.1 instead of 580\.65\.06\)\. Build it: rankrt build"):
        place(unverified, Device("tensorrt"), "auto", CPU)


@pytest.mark.usefixtures("on_gpu")
def test_rows_longer_than_the_engines_take_are_refused_when_loading(unverified: Artifact):
    for variant in variants_for(unverified, Device("tensorrt"), "auto"):
        build(unverified, variant, Device("tensorrt"), max_length=32)
    with pytest.raises(DeviceError, match=r"rows of up to 32 tokens, max_length is 64\. .* --max-length 64"):
        Reranker.load(unverified.folder, device="tensorrt")
    with Reranker.load(unverified.folder, device="tensorrt", max_length=32) as reranker:
        assert reranker.score([("one", "two " * 100)]).tolist() == [1 + 2 * 27]
        with pytest.raises(DeviceError, match="--max-length 48"):
            reranker.with_rules(max_length=48)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_ranking_on_a_gpu_is_ranking(unverified: Artifact, device: str):
    on = Device.parse(device)
    assert on is not None
    build_all(unverified, on)
    pairs = [
        (" ".join(["one"] * n), " ".join(["two"] * m)) for n, m in np.random.default_rng(0).integers(1, 25, (80, 2))
    ]
    with (
        Reranker.load(unverified.folder, device=device) as on_gpu,
        Reranker.load(unverified.folder, device="cpu") as cpu,
    ):
        assert on_gpu.score(pairs).tolist() == cpu.score(pairs).tolist()
        hits = on_gpu.rank("zero", ["one", "three", "two"], top_n=2)
        assert [hit.index for hit in hits] == [1, 2]
        assert on_gpu.score([]).shape == (0,)


@pytest.mark.usefixtures("on_gpu")
def test_refining_stays_on_the_gpu(unverified: Artifact):
    build_all(unverified, Device("cuda"))
    with Reranker.load(unverified.folder, device="cuda") as reranker:
        assert reranker.with_precision("fp32").variant.name == "cuda-fp32"
        assert reranker.rank("zero", ["one", "two"], top_n=1)[0].index == 1


@pytest.mark.usefixtures("on_gpu")
def test_blocks_that_are_encoded_ahead_come_in_their_order(unverified: Artifact, monkeypatch):
    monkeypatch.setattr("rankrt.reranker._GPU_BLOCK_PAIRS", 3)
    build_all(unverified, Device("cuda"))
    with Reranker.load(unverified.folder, device="cuda") as reranker:
        scores = reranker.score([("zero", word) for word in ["one", "two", "three", "four"] * 2])
        with pytest.raises(InputError, match="the passage of pair 3 is int, not str"):
            reranker.score([("zero", "one")] * 3 + [("zero", 3)])  # type: ignore[list-item]
    assert scores.tolist() == [1.0, 2.0, 3.0, 4.0] * 2


def test_a_gpu_is_fed_by_the_library_where_there_are_cores_for_it(tmp_path: Path, monkeypatch):
    """Both give the same ids for any text, as test_unigram_tokenizer shows at length; here for one of XLM-R's kind."""
    monkeypatch.setitem(UnigramTokenizer.read.__func__.__kwdefaults__, "min_pieces", 1)  # type: ignore[attr-defined]
    artifact = tiny_artifact(tmp_path / "unigram", tokenizer=Tokenizer.from_str(json.dumps(description())))
    one, many = (open_tokenizer(artifact, prepare=False, n_cores=n) for n in (1, 16))
    assert isinstance(one, UnigramTokenizer)
    assert isinstance(many, LibraryTokenizer)
    texts = ["abc ab", "", "水水  xyz", "<mask> abcabc é"]
    assert [ids.tolist() for ids in one.ids(texts)] == [ids.tolist() for ids in many.ids(texts)]


@pytest.mark.usefixtures("on_gpu")
def test_what_a_build_belongs_to_is_all_of_it(unverified: Artifact):
    (variant, _) = variants_for(unverified, Device("cuda"), "auto")
    key = built_for(unverified, variant, Device("cuda"))
    assert (key.artifact, key.variant, key.gpu, key.capability, key.driver) == (
        unverified.identity,
        "cuda-fp16",
        "NVIDIA H100",
        "9.0",
        "580.65.06",
    )
    changed = [msgspec.structs.replace(key, **{name: "other"}) for name in key.__struct_fields__]
    assert len({other.key.folder_name for other in [key, *changed]}) == 1 + len(changed)
    assert all(Builds().find(other) is None for other in changed)


@pytest.mark.usefixtures("on_gpu")
def test_int8_runs_on_tensorrt_where_it_is_named_and_auto_prefers_what_drifts_less(tmp_path: Path):
    artifact = tiny_artifact(
        tmp_path / "int8", targets=("tensorrt",), precisions=("int8", "fp16"), gpu_verification=VERIFICATION
    )
    build_all(artifact, Device("tensorrt"))
    assert place(artifact, None, "auto", CPU).name == "tensorrt-fp16"
    with Reranker.load(artifact.folder, device="tensorrt", precision="int8") as reranker:
        assert reranker.variant.name == "tensorrt-int8"
        assert reranker.score([("one", "two")]).tolist() == [3.0]


@pytest.mark.usefixtures("on_gpu")
def test_auto_takes_int8_where_nothing_else_was_exported_for_the_gpu(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "int8", targets=("tensorrt",), precisions=("int8",))
    build_all(artifact, Device("tensorrt"))
    assert place(artifact, Device("tensorrt"), "auto", CPU).name == "tensorrt-int8"


@pytest.mark.usefixtures("on_gpu")
def test_fp8_is_for_gpus_that_multiply_it(tmp_path: Path, monkeypatch, caplog):
    both, alone = (
        tiny_artifact(tmp_path / "-".join(precisions), targets=("tensorrt",), precisions=precisions)
        for precisions in (("fp16", "fp8"), ("fp8",))
    )
    assert [v.precision for v in variants_for(both, Device("tensorrt"), "auto")] == ["fp16", "fp8"]
    older = gpus("NVIDIA A100")
    show(monkeypatch, replace(older, found=tuple(replace(gpu, capability="8.0") for gpu in older.found)))
    with caplog.at_level(logging.WARNING):
        assert [v.precision for v in variants_for(both, Device("tensorrt"), "auto")] == ["fp16"]
    assert "tensorrt-fp8 is left out: it needs a GPU of compute capability 8.9 or newer" in caplog.text
    for artifact in (both, alone):
        with pytest.raises(
            DeviceError, match=r"tensorrt-fp8 needs a GPU of .* 8\.9 .*, NVIDIA A100 has 8\.0; use another"
        ):
            Reranker.load(artifact.folder, device="tensorrt", precision="fp8")
