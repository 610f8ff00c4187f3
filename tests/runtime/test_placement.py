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
from rankrt.artifact.manifest import Artifact
from rankrt.artifact.precisions import Target
from rankrt.host.device import Device
from rankrt.host.gpus import Gpus
from rankrt.host.host import Host, this_host
from rankrt.loading.choose import Asked, Wanted, place
from rankrt.loading.prepared import Prepared, key_of
from rankrt.loading.tokenizer import open_tokenizer
from rankrt.text.tokenizers import LibraryTokenizer
from rankrt.text.unigram import UnigramTokenizer
from tests.runtime.gpus import compute_on_the_cpu, gpus, placed, prepare_all, show
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


def name_of(artifact: Artifact, device: str = "auto", precision: Wanted = "auto") -> str:
    """Return the variant that this host would load, as a host with AVX2 and the GPUs that a test shows."""
    host = Host(machine=CPU, has_driver=this_host().has_driver)
    return place(artifact, Asked(device=Device.parse(device), precision=precision), host).variant.name


@pytest.mark.usefixtures("on_gpu")
def test_auto_takes_a_gpu_that_has_a_verified_variant(verified: Artifact):
    assert name_of(verified) == "cuda-fp16"
    assert name_of(verified, precision="fp32") == "cuda-fp32"


def test_the_driver_is_asked_once_however_many_devices_are_tried(unverified: Artifact, monkeypatch):
    compute_on_the_cpu(monkeypatch, "NVIDIA H100")
    asked: list[Gpus] = []

    def find() -> Gpus:
        asked.append(gpus("NVIDIA H100"))
        return asked[-1]

    monkeypatch.setattr("rankrt.host.gpus.find_gpus", find)
    prepare_all(unverified, Device("tensorrt"))
    asked.clear()
    with Reranker.load(unverified.folder) as reranker:
        assert reranker.variant.name == "tensorrt-fp16"
        assert reranker.with_precision("fp32").variant.name == "tensorrt-fp32"
    assert len(asked) == 1


@pytest.mark.usefixtures("on_gpu")
def test_auto_takes_the_cpu_and_says_why_where_nothing_is_verified(unverified: Artifact, caplog):
    with caplog.at_level(logging.WARNING):
        assert name_of(unverified) == "cpu-fp32"
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("this host has an NVIDIA driver, but the CPU is used: cuda-fp16 was never verified")
    assert f"rankrt prepare {unverified.folder} --device cuda" in said
    assert f"rankrt prepare {unverified.folder} --device tensorrt" in said


@pytest.mark.usefixtures("on_gpu")
def test_auto_takes_nothing_unverified_even_if_its_precision_is_named(unverified: Artifact):
    assert name_of(unverified, precision="fp16") == "cpu-fp16"
    assert name_of(unverified, "cuda", "fp16") == "cuda-fp16"


@pytest.mark.usefixtures("on_gpu")
def test_auto_says_that_an_artifact_has_nothing_for_a_gpu(only_cpu: Artifact, caplog):
    with caplog.at_level(logging.WARNING):
        assert name_of(only_cpu) == "cpu-fp32"
    assert "has no variant for cuda; it has cpu-fp32. Export one: rankrt export tests/tiny" in caplog.text


def test_auto_says_that_the_engine_cannot_use_the_gpu(verified: Artifact, monkeypatch, caplog):
    show(monkeypatch, gpus("NVIDIA H100"))
    monkeypatch.setattr("rankrt.host.gpus.find_gpus", _never)  # CUDA is not initialised where it is not used
    monkeypatch.setattr("rankrt.backends.providers.import_onnxruntime", lambda: _OnlyCpu)
    with caplog.at_level(logging.WARNING):
        assert name_of(verified) == "cpu-fp32"
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
        assert name_of(verified) == "cpu-fp32"
    assert caplog.records == []


@pytest.mark.usefixtures("on_gpu")
def test_the_cpu_by_name_is_the_cpu(verified: Artifact, caplog):
    with caplog.at_level(logging.INFO):
        assert name_of(verified, "cpu") == "cpu-fp32"
    assert caplog.records == []


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    ("make", "device", "message"),
    [
        ("only_cpu", "cuda", r"has no variant for cuda; it has cpu-fp32\. Export one: rankrt export .* --target cuda"),
        ("only_cpu", "tensorrt", r"has no variant for tensorrt; .* --target tensorrt"),
        ("unverified", "cuda", r"cuda-fp16 was never verified, .* rankrt prepare \S+ --device cuda"),
        ("unverified", "cuda:1", r"rankrt prepare \S+ --device cuda:1"),
        ("verified", "tensorrt", r"tensorrt-fp16 has no engines here\. .* rankrt prepare \S+ --device tensorrt"),
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
    prepare_all(unverified, Device("cuda"))
    with Reranker.load(unverified.folder) as reranker:
        assert repr(reranker) == "Reranker('tiny', cuda-fp16 on cuda:0, max_length=64)"
        assert reranker.device == Device("cuda", 0)


@pytest.mark.usefixtures("on_gpu")
def test_a_build_is_for_one_gpu(unverified: Artifact):
    prepare_all(unverified, Device("tensorrt", 0))
    assert name_of(unverified, "tensorrt") == "tensorrt-fp16"
    with pytest.raises(DeviceError, match=r"prepared for something else \(gpu NVIDIA L4 instead of NVIDIA H100\)"):
        name_of(unverified, "tensorrt:1")


@pytest.mark.usefixtures("on_gpu")
def test_another_driver_asks_for_another_build(unverified: Artifact, monkeypatch):
    prepare_all(unverified, Device("tensorrt"))
    show(monkeypatch, replace(gpus("NVIDIA H100"), driver="590.1"))
    with pytest.raises(DeviceError, match=r"\(driver 590\.1 instead of 580\.65\.06\)\. Prepare it: rankrt prepare"):
        name_of(unverified, "tensorrt")


@pytest.mark.usefixtures("on_gpu")
def test_rows_longer_than_the_engines_take_are_refused_when_loading(unverified: Artifact):
    prepare_all(unverified, Device("tensorrt"), max_length=32)
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
    prepare_all(unverified, on)
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
    prepare_all(unverified, Device("cuda"))
    with Reranker.load(unverified.folder, device="cuda") as reranker:
        assert reranker.with_precision("fp32").variant.name == "cuda-fp32"
        assert reranker.rank("zero", ["one", "two"], top_n=1)[0].index == 1


@pytest.mark.usefixtures("on_gpu")
def test_blocks_that_are_encoded_ahead_come_in_their_order(unverified: Artifact, monkeypatch):
    monkeypatch.setattr("rankrt.scoring._GPU_BLOCK_PAIRS", 3)
    prepare_all(unverified, Device("cuda"))
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
    prepare_all(unverified, Device("cuda"))
    key = key_of(placed(unverified, Device("cuda"))[0])
    expected = {"gpu": "NVIDIA H100", "driver": "580.65.06", "capability": "9.0", "artifact": unverified.identity}
    assert key.depends_on == expected | {"engine": key.depends_on["engine"]}
    assert (key.name, key.variant) == ("tiny", "cuda-fp16")
    others = [msgspec.structs.replace(key, depends_on=key.depends_on | {name: "other"}) for name in key.depends_on]
    others += [msgspec.structs.replace(key, name="other"), msgspec.structs.replace(key, variant="other")]
    assert len({other.folder_name for other in [key, *others]}) == 1 + len(others)
    assert Prepared().record(key) is not None
    assert all(Prepared().record(other) is None for other in others)


@pytest.mark.usefixtures("on_gpu")
def test_int8_runs_on_tensorrt_where_it_is_named_and_auto_prefers_what_drifts_less(tmp_path: Path):
    artifact = tiny_artifact(
        tmp_path / "int8", targets=("tensorrt",), precisions=("int8", "fp16"), gpu_verification=VERIFICATION
    )
    prepare_all(artifact, Device("tensorrt"))
    assert name_of(artifact) == "tensorrt-fp16"
    with Reranker.load(artifact.folder, device="tensorrt", precision="int8") as reranker:
        assert reranker.variant.name == "tensorrt-int8"
        assert reranker.score([("one", "two")]).tolist() == [3.0]


@pytest.mark.usefixtures("on_gpu")
def test_auto_takes_int8_where_nothing_else_was_exported_for_the_gpu(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "int8", targets=("tensorrt",), precisions=("int8",))
    prepare_all(artifact, Device("tensorrt"))
    assert name_of(artifact, "tensorrt") == "tensorrt-int8"


@pytest.mark.usefixtures("on_gpu")
def test_fp8_is_for_gpus_that_multiply_it(tmp_path: Path, monkeypatch, caplog):
    both, alone = (
        tiny_artifact(tmp_path / "-".join(precisions), targets=("tensorrt",), precisions=precisions)
        for precisions in (("fp16", "fp8"), ("fp8",))
    )
    assert [p.variant.precision for p in placed(both, Device("tensorrt"))] == ["fp16", "fp8"]
    older = gpus("NVIDIA A100")
    show(monkeypatch, replace(older, found=tuple(replace(gpu, capability="8.0") for gpu in older.found)))
    with caplog.at_level(logging.WARNING):
        assert [p.variant.precision for p in placed(both, Device("tensorrt"))] == ["fp16"]
    assert "tensorrt-fp8 is left out: it needs a GPU of compute capability 8.9 or newer" in caplog.text
    for artifact in (both, alone):
        with pytest.raises(
            DeviceError, match=r"tensorrt-fp8 needs a GPU of .* 8\.9 .*, NVIDIA A100 has 8\.0; use another"
        ):
            Reranker.load(artifact.folder, device="tensorrt", precision="fp8")
