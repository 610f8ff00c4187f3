"""`rankrt doctor --device`: what it finds without a GPU, with one, and what does not go together."""

import json
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import msgspec
import pytest

from rankrt.artifact.manifest import Artifact, Variant
from rankrt.cli.finding import Finding
from rankrt.cli.gpu_doctor import _attention, kernels_of, misfits
from rankrt.cli.main import main
from rankrt.host.device import Device
from rankrt.host.gpus import Gpu
from rankrt.host.host import this_host
from rankrt.loading.placement import Placement
from tests.runtime.gpus import compute_on_the_cpu, gpus, show
from tests.support import VERIFICATION, tiny_artifact

Output = pytest.CaptureFixture[str]
ATTENTION = Finding(name="attention", verdict="ok", detail="PackedMultiHeadAttention by FLASH_ATTENTION")
GOOD = {
    "onnxruntime-gpu": "1.31.1",
    "nvidia-cublas": "13.10.0.20",
    "nvidia-cuda-runtime": "13.5.37",
    "nvidia-cudnn-cu13": "9.28.1.4",
    "nvidia-cufft": "12.5.0.14",
    "nvidia-curand": "10.4.5.25",
    "tensorrt-cu13-libs": "10.16.1.11",
}


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return tiny_artifact(tmp_path / "tiny", targets=("cpu", "cuda", "tensorrt"), gpu_verification=VERIFICATION)


def doctor(capsys: Output, *arguments: object) -> tuple[int, dict[str, dict[str, Any]]]:
    status = main(["doctor", "--json", *map(str, arguments)])
    return status, {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_wheels_that_go_together_are_fine():
    assert misfits(GOOD, 13, 10) == []


@pytest.mark.parametrize(
    ("wheels", "complaint"),
    [
        ({"onnxruntime": "1.32.0"}, "onnxruntime and onnxruntime-gpu write the same files"),
        ({"nvidia-cudnn-cu12": "9.5.0.50"}, "nvidia-cudnn-cu12 9.5.0.50 is for CUDA 12, onnxruntime-gpu for CUDA 13"),
        ({"nvidia-cublas": "12.8.4.1"}, "nvidia-cublas 12.8.4.1 is for CUDA 12, onnxruntime-gpu for CUDA 13"),
        ({"tensorrt-cu13-libs": "11.4.0.106"}, "tensorrt-cu13-libs 11.4.0.106 is not TensorRT 10, which"),
        ({"tensorrt-cu12-libs": "10.8.0.43"}, "tensorrt-cu12-libs 10.8.0.43 is for CUDA 12"),
    ],
)
def test_wheels_that_do_not_go_together_are_named(wheels: dict[str, str], complaint: str):
    (found,) = misfits(GOOD | wheels, 13, 10)
    assert found.startswith(complaint)


def test_the_kernels_of_attention_are_read_from_what_the_engine_prints():
    printed = (
        "\x1b[36mOperator=PackedMultiHeadAttention Node=layer.0 DataType=fp16 SdpaKernel=FLASH_ATTENTION\x1b[0m\n"
        '{"score": 1.0, "truncated": false}\n'
        "\x1b[36mOperator=PackedMultiHeadAttention Node=layer.1 DataType=fp16 SdpaKernel=FLASH_ATTENTION\x1b[0m\n"
    )
    assert kernels_of(printed) == [("PackedMultiHeadAttention", "FLASH_ATTENTION")]
    assert kernels_of('{"score": 1.0}') == []


@pytest.mark.parametrize(
    ("precision", "capability", "kernels", "verdict"),
    [
        ("fp16", "9.0", ["FLASH_ATTENTION"], "ok"),
        ("fp16", "9.0", ["EFFICIENT_ATTENTION", "FLASH_ATTENTION"], "fail"),
        ("fp16", "9.0", ["CUDNN_FLASH_ATTENTION"], "fail"),
        ("fp16", "9.0", ["FLASH_ATTENTION", "MATH"], "fail"),
        ("fp16", "8.6", ["EFFICIENT_ATTENTION"], "fail"),
        ("fp16", "7.5", ["EFFICIENT_ATTENTION"], "note"),
        ("fp32", "9.0", ["EFFICIENT_ATTENTION"], "note"),
    ],
)
def test_flash_attention_is_expected_where_there_is_a_kernel_for_it(
    artifact: Artifact, monkeypatch, precision: str, capability: str, kernels: list[str], verdict: str
):
    found = gpus("A GPU")
    gpu = replace(found.found[0], capability=capability)
    printed = "".join(f"Operator=PackedMultiHeadAttention SdpaKernel={kernel}\n" for kernel in kernels)
    monkeypatch.setattr("subprocess.run", lambda *a, **k: CompletedProcess([], 0, stdout=printed, stderr=""))
    variant = msgspec.structs.replace(artifact.manifest.variants[1], precision=precision)
    finding = _attention(on_cuda(artifact, variant, gpu))
    assert finding.verdict == verdict
    assert finding.detail == ", ".join(f"PackedMultiHeadAttention by {kernel}" for kernel in kernels)


@pytest.mark.parametrize(("of_windows", "verdict"), [("EFFICIENT_ATTENTION", "ok"), ("MATH", "fail")])
def test_windows_beside_whole_rows_have_a_mask_and_no_flash_attention(
    artifact: Artifact, monkeypatch, of_windows: str, verdict: str
):
    printed = (
        "Operator=PackedMultiHeadAttention SdpaKernel=FLASH_ATTENTION\n"
        f"Operator=MultiHeadAttention SdpaKernel={of_windows}\n"
    )
    monkeypatch.setattr("subprocess.run", lambda *a, **k: CompletedProcess([], 0, stdout=printed, stderr=""))
    variant = msgspec.structs.replace(artifact.manifest.variants[1], precision="fp16")
    gpu = replace(gpus("A GPU").found[0], capability="9.0")
    assert _attention(on_cuda(artifact, variant, gpu)).verdict == verdict


def test_a_graph_whose_attention_is_in_plain_operators_is_no_failure(artifact: Artifact, monkeypatch):
    """DeBERTa's attention knows distances, for which there is no kernel."""
    monkeypatch.setattr("subprocess.run", lambda *a, **k: CompletedProcess([], 0, stdout="", stderr=""))
    finding = _attention(on_cuda(artifact, artifact.manifest.variants[1], gpus("A GPU").found[0]))
    assert (finding.verdict, finding.detail) == ("note", "plain operators, no kernel for it")


def on_cuda(artifact: Artifact, variant: Variant, gpu: Gpu | None = None) -> Placement:
    return Placement(artifact=artifact, variant=variant, device=Device("cuda"), host=this_host(), gpu=gpu)


def test_the_process_that_is_asked_for_kernels_may_fail(artifact: Artifact):
    """Without a GPU it does: its words are the finding."""
    finding = _attention(on_cuda(artifact, artifact.manifest.variants[1]))
    assert finding.verdict == "fail"
    assert finding.detail.startswith("rankrt: error: ")


@pytest.mark.parametrize("device", ["cuda", "tensorrt:1"])
def test_without_a_gpu_every_finding_says_why(artifact: Artifact, monkeypatch, capsys: Output, device: str):
    show(monkeypatch, gpus())
    status, findings = doctor(capsys, artifact.folder, "--device", device)
    name = f"{device.partition(':')[0]}-fp32"
    assert status == 1
    assert findings["driver"]["detail"] == "the driver shows this process no GPU"
    assert {findings[f]["verdict"] for f in ("driver", "gpu", "choice", "build", "nodes", name)} == {"fail"}
    assert findings["files"]["verdict"] == "ok"
    assert findings["cpu-fp32"]["verdict"] == "note"


@pytest.mark.parametrize(("device", "is_experimental"), [("tensorrt", True), ("cuda", False)])
def test_tensorrt_is_said_to_be_experimental(monkeypatch, capsys: Output, device: str, is_experimental: bool):
    show(monkeypatch, gpus())
    _, findings = doctor(capsys, "--device", device)
    assert ("experimental" in findings.get("tensorrt", {}).get("detail", "")) is is_experimental


def test_where_everything_is_there_the_examples_are_scored(artifact: Artifact, monkeypatch, capsys: Output):
    compute_on_the_cpu(monkeypatch, "NVIDIA H100")
    monkeypatch.setattr("rankrt.cli.gpu_doctor._attention", lambda *arguments: ATTENTION)
    _, findings = doctor(capsys, artifact.folder, "--device", "cuda")
    assert findings["driver"]["detail"] == "580.65.06, runs CUDA up to 13.0; 1 GPUs are visible"
    assert findings["gpu"]["detail"] == "NVIDIA H100 (compute capability 9.0, 80 GiB)"
    assert findings["choice"]["detail"] == "precision='auto' takes cuda-fp32 on cuda:0"
    assert findings["build"]["detail"].startswith("verified where it was exported")
    assert findings["nodes"]["detail"].endswith("nodes of cuda-fp32 run on CPUExecutionProvider")
    assert findings["memory"]["detail"] == "3.22 GB taken by loading and by runs of rows of 64 tokens"
    assert findings["cuda-fp32"]["detail"].startswith("1 examples scored here differ from PyTorch by up to 0.0e+00")


def test_engines_that_are_missing_are_a_finding_with_the_command(artifact: Artifact, monkeypatch, capsys: Output):
    compute_on_the_cpu(monkeypatch, "NVIDIA H100")
    status, findings = doctor(capsys, artifact.folder, "--device", "tensorrt")
    assert status == 1
    assert findings["build"]["detail"].endswith(f"rankrt prepare {artifact.folder} --device tensorrt")
    main(["prepare", str(artifact.folder), "--device", "tensorrt"])
    capsys.readouterr()
    _, findings = doctor(capsys, artifact.folder, "--device", "tensorrt")
    assert findings["build"]["detail"].startswith("for rows of up to 64 tokens; 1 examples differed by up to 0.0e+00")
    assert findings["nodes"]["verdict"] == findings["tensorrt-fp32"]["verdict"] == "ok"


def test_nodes_on_another_provider_are_a_failure(artifact: Artifact, monkeypatch, capsys: Output):
    compute_on_the_cpu(monkeypatch, "NVIDIA H100")
    monkeypatch.setattr("rankrt.cli.gpu_doctor.placements", lambda session: {"CPUExecutionProvider": 9, "Other": 1})
    _, findings = doctor(capsys, artifact.folder, "--device", "cuda")
    assert findings["nodes"]["detail"] == "some nodes of cuda-fp32 run on Other instead of CPUExecutionProvider"
    assert "attention" not in findings


def test_a_device_that_is_none_is_refused(capsys: Output):
    assert main(["doctor", "--device", "gpu"]) == 1
    assert "--device gpu, expected" in capsys.readouterr().err
