"""What only a GPU can show: scores beside PyTorch's and the CPU's, flash attention, engines that are built once.

`make test-gpu` runs it. Where no GPU can be used every test is skipped, with the reason that a user would be told. The
order is that of worth: an encoder on CUDA says most and takes seconds, then a decoder, then TensorRT, whose engines
take minutes. Each has an artifact of its own, written without verification, so that one variant that is wrong on a GPU
fails its own tests and no others.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rankrt import DeviceError, Reranker
from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Artifact, open_artifact
from rankrt.artifact.precisions import Precision
from rankrt.backends.providers import gpu_for
from rankrt.cli.gpu_doctor import examine_gpu, examine_variant
from rankrt.cli.main import main
from rankrt.host.device import Device
from rankrt.host.host import this_host
from rankrt.loading.prepare import prepare_for_gpu
from rankrt.loading.prepared import Prepared, drift_limit
from tests.runtime.gpus import placed, prepare_all
from tests.support import in_threads

pytestmark = [pytest.mark.gpu, pytest.mark.export]

CHECKPOINT = Path(__file__).resolve().parents[2] / "tiny_reranker" / "checkpoint"
CPU, CUDA, TENSORRT = Device("cpu"), Device("cuda"), Device("tensorrt")
# Kernels that add in another order: what fp32 is promised to keep on a GPU, with TF32 off.
FP32_LIMIT = 1e-3
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "fp8")
WORDS = ["river", "bank", "Fluss", "montaña", "город", "水", "データ", "of", "the", "and", "12", "kernel"]


def _needs(device: Device) -> None:
    try:
        gpu_for(device, this_host())
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", autouse=True)
def _gpu() -> None:
    _needs(CUDA)


def exported(checkpoint: Path, folder: Path, target: str, *precisions: str) -> Artifact:
    pytest.importorskip("rankrt_export.pipeline", reason="needs the export extra")
    options = ["--target", "cpu", target, "--precision", *precisions, "--no-verify"]
    assert main(["export", str(checkpoint), str(folder), *options]) == 0
    return open_artifact(folder)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(CHECKPOINT, tmp_path_factory.mktemp("cuda") / "tiny", "cuda", "fp32", "fp16")


@pytest.fixture(scope="module")
def on_tensorrt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    """An artifact for TensorRT, with engines for all variants in a cache that the tests of this module share."""
    _needs(TENSORRT)
    artifact = exported(CHECKPOINT, tmp_path_factory.mktemp("tensorrt") / "tiny", "tensorrt", *PRECISIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKRT_CACHE", str(tmp_path_factory.mktemp("engines")))
        prepare_all(artifact, TENSORRT)
        yield artifact


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    """Pairs of mixed lengths, from a few tokens to rows that are cut."""
    generator = np.random.default_rng(0)

    def text(n: int) -> str:
        return " ".join(generator.choice(WORDS, n))

    return [(text(int(n)), text(int(m))) for n, m in zip(generator.integers(1, 12, 300), _lengths(300), strict=True)]


def _lengths(n: int) -> list[int]:
    generator = np.random.default_rng(1)
    return [*generator.integers(1, 60, n - 40).tolist(), *generator.integers(200, 600, 40).tolist()]


@pytest.fixture(scope="module")
def on_cpu(artifact: Artifact, pairs: list[tuple[str, str]]) -> Float32Array:
    with Reranker.load(artifact.folder, device="cpu", precision="fp32") as reranker:
        return reranker.score(pairs)


def scores(artifact: Artifact, device: Device, precision: Precision, pairs: list[tuple[str, str]]) -> Float32Array:
    with Reranker.load(artifact.folder, device=str(device), precision=precision) as reranker:
        return reranker.score(pairs)


def test_fp32_on_cuda_equals_the_cpu(artifact: Artifact, pairs, on_cpu: Float32Array):
    assert np.abs(scores(artifact, CUDA, "fp32", pairs) - on_cpu).max() < FP32_LIMIT


def test_fp32_on_cuda_equals_pytorch_on_the_same_gpu(artifact: Artifact, pairs):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    transformers = pytest.importorskip("transformers")
    torch.backends.cuda.matmul.allow_tf32 = False
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model = load(CHECKPOINT, dtype=torch.float32).cuda().eval()  # the checkpoint's own type is half precision
    short = [pair for pair in pairs if len(pair[1].split()) < 60]
    with torch.no_grad():
        # One row at a time, so that nothing is padded.
        found = [model(**tokenizer(*pair, return_tensors="pt").to("cuda")).logits.item() for pair in short]
    assert np.abs(scores(artifact, CUDA, "fp32", short) - np.array(found)).max() < FP32_LIMIT


def test_fp16_on_cuda_drifts_no_further_than_it_may(artifact: Artifact, pairs, on_cpu: Float32Array):
    (placement,) = placed(artifact, CUDA, "fp16")
    assert np.abs(scores(artifact, CUDA, "fp16", pairs) - on_cpu).max() < drift_limit(placement.variant)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_score_hardly_depends_on_its_batch(artifact: Artifact, pairs, precision: Precision):
    """Kernels are chosen by the shape of a run, so a GPU does not promise the last bit."""
    (placement,) = placed(artifact, CUDA, precision)
    with Reranker.load(artifact.folder, device="cuda", precision=precision) as reranker:
        together = reranker.score(pairs)
        alone = np.concatenate([reranker.score([pair]) for pair in pairs])
    assert np.abs(together - alone).max() < drift_limit(placement.variant)


def test_the_same_call_gives_the_same_bits(artifact: Artifact, pairs):
    with Reranker.load(artifact.folder, device="cuda", precision="fp32") as reranker:
        first = reranker.score(pairs)
        assert all(reranker.score(pairs).tobytes() == first.tobytes() for _ in range(5))


def test_threads_share_a_gpu(artifact: Artifact, pairs, on_cpu: Float32Array):
    with Reranker.load(artifact.folder, device="cuda", precision="fp32") as reranker:
        answers = in_threads(8, lambda i: [reranker.score(pairs) for _ in range(5)])
    found = np.array(answers, np.float32).reshape(-1, len(pairs))
    assert np.abs(found - on_cpu).max() < FP32_LIMIT


def test_everything_that_is_needed_is_found(artifact: Artifact):
    assert [finding for finding in examine_gpu(CUDA) if finding.verdict != "ok"] == []


def test_fp16_runs_on_the_gpu_alone_and_attends_by_a_flash_kernel(artifact: Artifact):
    (placement,) = placed(artifact, CUDA, "fp16")
    prepare_for_gpu(placement)
    findings = {finding.name: finding for finding in examine_variant(artifact, placement.variant, CUDA)}
    assert (findings["nodes"].verdict, findings["attention"].verdict) == ("ok", "ok"), findings
    assert "by FLASH_ATTENTION" in findings["attention"].detail


def test_memory_that_is_not_enough_is_an_error(artifact: Artifact):
    with pytest.raises(Exception, match=r"[Mm]emory|allocat"):
        Reranker.load(artifact.folder, device="cuda", precision="fp32", gpu_memory_gb=0.001)


def decoder_for(target: str, folder: Path) -> Artifact:
    make = pytest.importorskip("tests.export.decoders", reason="needs the export extra")
    checkpoint = make.make_decoder(folder / "checkpoint", "Gemma", head_dim=64)
    return exported(checkpoint, folder / "artifact", target, "fp32", "fp16")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return decoder_for("cuda", tmp_path_factory.mktemp("decoder"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_decoder_on_cuda_drifts_no_further_than_it_may(decoder: Artifact, pairs, precision: Precision):
    expected = scores(decoder, CPU, "fp32", pairs)
    (placement,) = placed(decoder, CUDA, precision)
    limit = FP32_LIMIT if precision == "fp32" else drift_limit(placement.variant)
    assert np.abs(scores(decoder, CUDA, precision, pairs) - expected).max() < limit


def test_a_decoder_attends_by_a_flash_kernel(decoder: Artifact):
    (placement,) = placed(decoder, CUDA, "fp16")
    prepare_for_gpu(placement)
    findings = {finding.name: finding for finding in examine_variant(decoder, placement.variant, CUDA)}
    assert (findings["nodes"].verdict, findings["attention"].verdict) == ("ok", "ok"), findings


def test_auto_takes_the_gpu_whose_scores_the_export_has_verified(tmp_path: Path):
    options = ["--target", "cpu", "cuda", "--precision", "fp16"]
    assert main(["export", str(CHECKPOINT), str(tmp_path / "tiny"), *options]) == 0
    artifact = open_artifact(tmp_path / "tiny")
    with Reranker.load(artifact.folder) as reranker:
        assert reranker.device == CUDA
        assert reranker.variant.precision == "fp16"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_drifts_no_further_than_it_may(
    on_tensorrt: Artifact, pairs, on_cpu: Float32Array, precision: Precision
):
    if precision == "fp8" and gpu_for(TENSORRT, this_host()).version < (8, 9):
        pytest.skip("this GPU does not multiply 8-bit floats")
    (placement,) = placed(on_tensorrt, TENSORRT, precision)
    assert np.abs(scores(on_tensorrt, TENSORRT, precision, pairs) - on_cpu).max() < drift_limit(placement.variant)


def test_engines_that_were_built_are_loaded_and_not_built_again(on_tensorrt: Artifact, pairs):
    def files() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in (Prepared().cache.folder / "gpu").rglob("*.engine")}

    before = files()
    assert len(before) >= 2
    scores(on_tensorrt, TENSORRT, "fp16", pairs)
    assert files() == before


def test_tensorrt_runs_everything(on_tensorrt: Artifact):
    (placement,) = placed(on_tensorrt, TENSORRT, "fp16")
    verdicts = {finding.name: finding.verdict for finding in examine_variant(on_tensorrt, placement.variant, TENSORRT)}
    assert verdicts == {"build": "ok", "nodes": "ok", "memory": "ok"}


def test_a_decoder_on_tensorrt_drifts_no_further_than_it_may(pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _needs(TENSORRT)
    decoder = decoder_for("tensorrt", tmp_path)
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path))
    expected = scores(decoder, CPU, "fp32", pairs)
    (placement,) = placed(decoder, TENSORRT, "fp16")
    prepare_for_gpu(placement)
    assert np.abs(scores(decoder, TENSORRT, "fp16", pairs) - expected).max() < drift_limit(placement.variant)
