"""What ONNX Runtime's CUDA provider makes of our graphs, run by the real wheel on a CUDA that computes nothing.

No score is checked here. Where nodes run, which kernels are chosen, what is copied, waited for and allocated: all of it
is the wheel's own account.
"""

import json
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.subject import SMALL, Subject
from rankrt.artifact.manifest import Artifact
from rankrt.artifact.precisions import Precision
from tests.gpu import fake

pytest.importorskip("torch", reason="exporting needs the export extra")
pytest.importorskip("transformers", reason="exporting needs the export extra")

from rankrt_export.checkpoint.families import DECODERS
from rankrt_export.pipeline import Options, export
from tests.export.conftest import checkpoint_of
from tests.export.decoders import make_decoder, make_lightweight

pytestmark = [
    pytest.mark.export,
    pytest.mark.skipif(fake.python() is None, reason="RANKRT_GPU_PYTHON is not set; `make test-fake-gpu` sets it"),
    pytest.mark.skipif(fake.compiler() is None, reason="there is no C++ compiler"),
]

N_LAYERS = 4
# Four rows of like lengths, which decoders take in one run, too. Three times: the first makes the arena grow.
RUNS = [[190, 180, 200, 195]] * 3
OPTIONS = Options(precisions=["fp32", "fp16"], targets=["cuda"], is_verified=False)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fake_cuda")
    fake.build(folder, fake.python() or "")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_encoder(tmp_path_factory.mktemp("encoder"), hidden_size=128, num_attention_heads=2)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("decoder")
    checkpoint = make_decoder(folder / "checkpoint", "Gemma", head_dim=64, num_hidden_layers=N_LAYERS)
    return export(str(checkpoint), folder / "artifact", OPTIONS)


@pytest.fixture(scope="module")
def lightweight(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two layers see the whole row, two a window."""
    folder = tmp_path_factory.mktemp("lightweight")
    checkpoint = make_lightweight(folder / "checkpoint", head_dim=64, num_hidden_layers=N_LAYERS)
    return export(str(checkpoint), folder / "artifact", OPTIONS)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    shape = {"hidden_size": 128, "num_attention_heads": 2, "type_vocab_size": 2}
    return export_encoder(tmp_path_factory.mktemp("bert"), "BertConfig", **shape)


@pytest.fixture(scope="module")
def modernbert(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two layers see the whole row, two a window."""
    shape = {"hidden_size": 128, "num_attention_heads": 2, "cls_token_id": 0, "sep_token_id": 2}
    return export_encoder(tmp_path_factory.mktemp("modernbert"), "ModernBertConfig", **shape)


def export_encoder(folder: Path, config: str = "XLMRobertaConfig", **changes: Any) -> Artifact:
    checkpoint_of(folder / "checkpoint", config, **({"num_hidden_layers": N_LAYERS} | changes))
    return export(str(folder / "checkpoint"), folder / "artifact", OPTIONS)


@pytest.fixture(params=["encoder", "bert", "modernbert", "decoder", "lightweight"])
def artifact(request: pytest.FixtureRequest) -> Artifact:
    found: Artifact = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_node_runs_on_cuda(libraries: Path, artifact: Artifact, precision: Precision):
    placements = fake.trace(libraries, artifact.folder, precision, RUNS[:1]).placements
    assert placements.keys() == {"CUDAExecutionProvider"}


@pytest.mark.parametrize("sm", [80, 86, 89, 90, 120])
def test_fp16_attends_by_flash_kernels_and_asks_nothing_of_cudnn(libraries: Path, artifact: Artifact, sm: int):
    run = fake.trace(libraries, artifact.folder, "fp16", RUNS[:1], sm=sm).runs[0]
    count = fake.kernels(run)
    n_flash = sum(n for name, n in count.items() if "flash_fwd" in name)
    n_masked = sum(n for name, n in count.items() if "attention_kernel_batched" in name)
    # A mask keeps flash attention from being chosen. Memory-efficient attention takes an encoder's; a decoder's is in
    # plain operators.
    n_windows = 2 if artifact.manifest.architecture.startswith(("ModernBert", "CostWise")) else 0
    assert (n_flash, n_masked) == (N_LAYERS - n_windows, 0 if artifact.manifest.architecture in DECODERS else n_windows)
    assert not any(line.startswith("CUDNN") for line in run)


def test_a_warm_run_waits_for_nothing_and_allocates_nothing_between_its_kernels(libraries: Path, artifact: Artifact):
    """Before them inputs are copied, after them logits; both wait."""
    warm = fake.trace(libraries, artifact.folder, "fp16", RUNS).runs[-1]
    launches = [i for i, line in enumerate(warm) if line.startswith("KERNEL")]
    within = [line for line in warm[launches[0] : launches[-1]] if line.startswith(("SYNC", "MALLOC", "COPY sync"))]
    assert within == []
    assert not any(line.startswith("MALLOC") for line in warm)


def test_an_encoder_s_layer_is_six_products_and_four_kernels(libraries: Path, encoder: Artifact):
    """Attention; sum, bias and norm; bias and GELU; sum, bias and norm."""
    warm = fake.trace(libraries, encoder.folder, "fp16", RUNS).runs[-1]
    count = fake.kernels(warm)
    of_layers = {part: sum(n for name, n in count.items() if part in name) for part in KERNELS}
    # One norm more for the embeddings. The head is fp32: its biases are other kernels.
    assert of_layers == {part: n * N_LAYERS + (part == "SkipLayerNorm") for part, n in KERNELS.items()}
    assert sum(line.startswith("GEMM") for line in warm) == 6 * N_LAYERS


KERNELS = {"BroadcastBiasKernelI6__half": 0, "flash_fwd": 1, "SkipLayerNorm": 2, "BiasGelu": 1}


@pytest.mark.parametrize("memory_bytes", [None, 1 << 30], ids=["unlimited", "1 GiB"])
def test_mixed_runs_hold_little_more_than_the_largest_needs(libraries: Path, tmp_path: Path, memory_bytes: int | None):
    """16,384 tokens of XLM-R-large's width have states of 34 MB and inner ones of 134; two runs are in flight.

    An arena that grows by what is asked for held 3.4 GB here, and failed with a limit of 2.
    """
    wide: dict[str, Any] = {
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "num_hidden_layers": 2,
    }
    artifact = export_encoder(tmp_path, **wide)
    runs = mixed_runs(150)
    assert fake.trace(libraries, artifact.folder, "fp16", runs, memory_bytes=memory_bytes).held_bytes < 1.3e9


def test_the_benchmark_s_stages_for_rankrt_run_to_their_end(libraries: Path, tmp_path: Path):
    """The environment has no PyTorch: the models are made here, and the stages that compare with it are left out."""
    subject = Subject(SMALL, tmp_path / "model")
    assert subject.artifact.folder.exists()
    assert all(subject.decoder(family).folder.exists() for family in SMALL.decoders)
    stages = ["speed", "memory", "sweep", "decoders", "graphs"]
    command = [fake.python() or "", "-P", "-m", "benchmarks.gpu", "--model", "small", "--out", str(tmp_path)]
    command += ["--only", *stages]
    subprocess.run(command, env=fake.environment(libraries), check=True)
    record = json.loads((tmp_path / "results.json").read_text())
    assert {name: stage["reason"] for name, stage in record["stages"].items()} == dict.fromkeys(stages, "")
    assert "H100" in record["conditions"]["gpu"]


def mixed_runs(n: int) -> Sequence[Sequence[int]]:
    """Return the lengths of runs of up to 16,384 tokens."""
    chance = random.Random(0)
    return [[chance.randint(8, 512) for _ in range(chance.randint(1, 60))] for _ in range(n)]
