"""Which targets and precisions go together, and what is said where they do not."""

from pathlib import Path
from typing import Any

import pytest

from rankrt.artifact.precisions import Precision, Target
from rankrt.cli.main import main
from rankrt.errors import DeviceError
from rankrt.host.device import Device
from rankrt.host.host import Host
from rankrt_export.errors import CheckpointError, OptionsError
from rankrt_export.job.options import asked_variants
from rankrt_export.pipeline import Options, export
from rankrt_export.verify import scorers as loading
from tests.export.conftest import Make

pytestmark = pytest.mark.export


def test_each_target_gets_those_of_the_precisions_that_it_has():
    found = asked_variants(["cpu", "cuda", "tensorrt"], ["fp32", "int8", "fp16"])
    of_fp32 = ["cpu-fp32-kernels", "cpu-fp32"]
    of_int8 = ["cpu-int8-kernels", "cpu-int8-vnni", "cpu-int8-avx2"]
    of_gpus = ["cuda-fp32", "cuda-fp16", "tensorrt-fp32", "tensorrt-int8", "tensorrt-fp16"]
    assert [str(key) for key in found] == [*of_fp32, *of_int8, "cpu-fp16", *of_gpus]


REFUSED: dict[str, tuple[list[Target], list[Precision], str]] = {
    "a precision that no target has": (
        ["cuda"],
        ["fp16", "int8"],
        "int8 is for none of the targets asked for: cuda has",
    ),
    "a target that would get nothing": (
        ["cpu", "cuda"],
        ["int8", "int4"],
        "cuda has no int8 or int4; it has fp32, fp16",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path, kind: str):
    targets, precisions, message = REFUSED[kind]
    with pytest.raises(OptionsError, match=message):
        export("no/such-model", tmp_path / "artifact", Options(targets=targets, precisions=precisions))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_difference": -1.0}, "--max-drift -1: a difference in logits is a number above 0"),
        ({"max_difference": float("nan")}, "--max-drift nan"),
        ({"min_tau": 1.5}, "--min-tau 1.5: Kendall's tau is between -1 and 1"),
        ({"min_tau": float("nan")}, "--min-tau nan"),
    ],
)
def test_limits_that_are_none_are_refused_before_anything_is_read(tmp_path: Path, limits: dict[str, Any], message: str):
    with pytest.raises(OptionsError, match=message):
        export("no/such-model", tmp_path / "artifact", Options(**limits))


def test_models_that_are_traced_are_for_the_cpu(make_checkpoint: Make, tmp_path: Path):
    albert, options = make_checkpoint("AlbertConfig", name="albert"), Options(targets=["cpu", "cuda"])
    message = (
        "AlbertForSequenceClassification is exported by tracing, for the CPU only, not for cuda; GPU targets are for"
    )
    with pytest.raises(CheckpointError, match=message):
        export(str(albert), tmp_path / "artifact", options)


def test_a_variant_that_cannot_run_here_is_announced(
    make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def no_gpu(device: Device, host: Host) -> None:
        raise DeviceError(f"{device} is not there")

    monkeypatch.setattr(loading, "gpu_for", no_gpu)
    command = ["export", str(make_checkpoint()), str(tmp_path / "artifact"), "--target", "cuda", "tensorrt"]
    assert main([*command, "--precision", "fp16", "--max-drift", "9", "--min-tau", "-1"]) == 0
    output, errors = capsys.readouterr()
    assert "cuda-fp16      0 MB  not verified" in output
    assert "cuda-fp16 is not verified, because there is no CUDA device here" in errors
    assert f"rankrt prepare {tmp_path / 'artifact'} --device cuda" in errors
    assert "tensorrt-fp16 is not verified" not in errors


def test_info_says_how_variants_for_gpus_are_checked(
    make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = Options(targets=["cpu", "tensorrt"], is_verified=False)
    export(str(make_checkpoint()), tmp_path / "artifact", options)
    assert main(["info", str(tmp_path / "artifact")]) == 0
    output = capsys.readouterr().out
    assert f"tensorrt: checked on the GPU itself by rankrt prepare {tmp_path}" in output
    assert "cpu: checked" not in output
