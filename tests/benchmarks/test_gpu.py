"""A session on a GPU: what becomes of its stages, what is written, and PyTorch's own ways to score."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.lines import Line, rate
from benchmarks.gpu.parts import Products, Rates, at_best_ms, part_of, parts_of
from benchmarks.gpu.report import report
from benchmarks.gpu.rows import lengths_of, rows_of
from benchmarks.gpu.session import Session, Stage
from benchmarks.gpu.subject import SMALL, Subject
from benchmarks.harness.operations import Shape
from tests.benchmarks.conftest import ROOT

torch = pytest.importorskip("torch", reason="needs the export extra")
pytestmark = pytest.mark.export

SHAPE = Shape(n_layers=2, hidden=1024, intermediate=4096)


def works(subject: Subject) -> Iterator[Line]:
    yield Line(name="answer", figures={"ms": 2.5, "verdict": "ok"})


def fails(subject: Subject) -> Iterator[Line]:
    yield Line(name="before", figures={"ms": 1.0})
    raise ValueError("no such kernel")


def lasts(subject: Subject) -> Iterator[Line]:
    yield Line(name="before", figures={"ms": 1.0})
    try:
        time.sleep(60)
    except Exception:  # noqa: BLE001  a library that takes every failure for its own
        yield Line(name="after", figures={"ms": 1.0})


def wastes(subject: Subject) -> Iterator[Line]:
    """Take more than its time, in code that does not hear of it."""
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        try:
            time.sleep(0.5)
        except BaseException:  # noqa: BLE001
            continue
    yield from ()


def session(folder: Path, **conditions: str) -> Session:
    return Session(folder, Subject(SMALL, folder / "model"), {"gpu": "H100", **conditions})


def stage(name: str, share: float = 1.0) -> Stage:
    return Stage(place=f"{__name__}:{name}", share=share)


def read(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return record


def test_a_stage_that_fails_keeps_its_lines_and_the_next_one_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    session(tmp_path).run({"one": stage("fails"), "two": stage("works")}, budget_s=60)
    stages = read(tmp_path)["stages"]
    assert (stages["one"]["outcome"], stages["one"]["reason"]) == ("failed", "ValueError: no such kernel")
    assert stages["one"]["lines"] == [{"name": "before", "figures": {"ms": 1.0}}]
    assert stages["two"]["outcome"] == "done"
    said = capsys.readouterr().out
    assert "one       failed: ValueError: no such kernel" in said
    assert "two       answer: ms 2.5, verdict ok" in said


def test_a_stage_is_cut_off_when_its_share_is_over_and_the_next_one_has_its_own(tmp_path: Path):
    began = time.monotonic()
    session(tmp_path).run({"one": stage("lasts", 1), "two": stage("works", 9)}, budget_s=3)
    stages = read(tmp_path)["stages"]
    assert [stages[name]["outcome"] for name in ("one", "two")] == ["cut off", "done"]
    assert [line["name"] for line in stages["one"]["lines"]] == ["before"]
    assert time.monotonic() - began < 30


def test_a_stage_whose_time_was_taken_is_left_out_with_the_reason(tmp_path: Path):
    session(tmp_path).run({"one": stage("wastes"), "two": stage("works", 0.1)}, budget_s=0.1)
    left_out = read(tmp_path)["stages"]["two"]
    assert (left_out["outcome"], left_out["reason"]) == ("left out", "earlier stages took its time")


def test_a_second_call_goes_on_with_the_record_of_the_same_conditions(tmp_path: Path):
    session(tmp_path).run({"one": stage("works")}, budget_s=60)
    session(tmp_path).run({"two": stage("works")}, budget_s=60)
    assert list(read(tmp_path)["stages"]) == ["one", "two"]
    session(tmp_path, driver="newer").run({"three": stage("works")}, budget_s=60)
    assert list(read(tmp_path)["stages"]) == ["three"]


def test_the_report_gives_the_share_of_the_products_rate_and_the_ratio_to_each_system():
    lengths = [512] * 100
    ours, theirs = (
        rate(name, "512", lengths, 51_200 / n, SHAPE) for name, n in (("rankrt fp16", 1e5), ("packed", 5e4))
    )
    products = {"name": "products of a layer, 64 tokens", "figures": {"tflops": 2 * ours.figures["tflops"]}}
    stages = {
        "machine": [products],
        "speed": [{"name": ours.name, "figures": ours.figures}],
        "peers": [{"name": theirs.name, "figures": theirs.figures}],
    }
    done = {"outcome": "done", "reason": "", "seconds": 3.0}
    text = report(
        {"conditions": {"gpu": "H100"}, "stages": {n: {**done, "lines": lines} for n, lines in stages.items()}}
    )
    assert "- gpu: H100" in text
    speeds = [line.split(" | ") for line in text.splitlines() if line.startswith("| 512: ")]
    assert [(row[0], row[1], *row[4:]) for row in speeds] == [
        ("| 512: rankrt fp16", "100", "50%", "1.00 |"),
        ("| 512: packed", "50.0", "25%", "2.00 |"),
    ]


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        (
            "void onnxruntime::flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, cutlass::half_t>>",
            "attention",
        ),
        ("attention_kernel_batched_impl<AttentionKernel<cutlass::half_t, cutlass::arch::Sm80>>", "attention"),
        ("sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_cublas", "products"),
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT", "products"),
        ("void onnxruntime::contrib::cuda::SkipLayerNormKernelSmall<__half, 256u, 4>", "norms"),
        ("void at::native::vectorized_layer_norm_kernel<c10::Half, float>", "norms"),
        ("void onnxruntime::contrib::cuda::BiasGeluKernel<__half, 256, 4>", "activation"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>", "activation"),
        ("onnxruntime::contrib::cuda::BroadcastBiasKernelI6__half", "biases"),
        ("Memcpy HtoD (Pageable -> Device)", "rest"),
    ],
)
def test_a_kernel_belongs_to_the_part_that_its_source_names(kernel: str, part: str):
    assert part_of(kernel) == part


def test_parts_have_their_share_and_their_ratio_to_the_cards_rates():
    took = {"nvjet_one": 3.0, "nvjet_two": 1.0, "flash_fwd": 2.0, "gather": 2.0}
    lines = list(parts_of("rankrt fp16", took, {"products": 2.0, "attention": 2.0}))
    assert {line.name: tuple(line.figures.values()) for line in lines if line.figures["ms"]} == {
        "rankrt fp16: products": (4.0, 0.5, 2.0, 2.0),
        "rankrt fp16: attention": (2.0, 0.25, 2.0, 1.0),
        "rankrt fp16: rest": (2.0, 0.25, "-", "-"),
    }


def test_at_the_cards_rates_a_run_takes_the_times_that_its_layers_add_up_to():
    """Three of four layers are whole. 1000 tokens of 1024 values in fp16 are 2.048 MB, or 2.048 ms at 1 GB/s."""
    rates = Rates(products=Products(square_s=1e-3, up_s=5e-3, down_s=6e-3), attention_s=2e-3, bytes_per_s=1e9)
    shape = Shape(n_layers=4, hidden=1024, intermediate=4096)
    assert at_best_ms(shape, 1000, rates) == pytest.approx(
        {
            "attention": 3 * 2,
            "products": 3 * (4 + 5 + 6) + 2,
            "norms": 3 * 2 * 3 * 2.048,
            "activation": 3 * 2 * 4 * 2.048,
            "biases": 3 * 2 * 2.048,
        }
    )


def test_the_rates_of_a_run_are_measured_in_its_own_shape(tmp_path: Path):
    from benchmarks.gpu.machine import rates

    measured = rates(Subject(SMALL, tmp_path), 16, 32)
    assert min(measured.products.square_s, measured.products.up_s, measured.attention_s, measured.bytes_per_s) > 0


def test_a_rate_counts_the_operations_of_each_row():
    line = rate("rankrt", "mixed", [8, 8, 16], 2.0, SHAPE)
    assert (line.figures["tokens_per_s"], line.figures["rows_per_s"]) == (16, 1.5)
    assert line.figures["tflops"] == pytest.approx((2 * SHAPE.operations(8) + SHAPE.operations(16)) / 2e12)


def test_lengths_are_as_many_as_the_tokens_need():
    assert lengths_of("128", 1000) == [128] * 7
    passages = lengths_of("passages", 100_000)
    assert min(passages) >= 16
    assert max(passages) <= 512
    assert 100_000 <= sum(passages) < 100_512
    assert 160 < np.median(passages) < 180


def test_rows_without_padding_have_the_logits_of_transformers(tmp_path: Path):
    """The difference is fp32's: other shapes are added in another order. Logits differ by whole units."""
    from benchmarks.gpu.pytorch import Packed, model_of, packed, padded

    model = model_of(Subject(SMALL, tmp_path).checkpoint, torch.float32)
    rows = rows_of([40, 33, 17, 8, 3], SMALL.n_ids)
    alone = np.concatenate([padded(model, [row])() for row in rows])
    assert alone.std() > 0.5
    assert np.abs(padded(model, rows)() - alone).max() < 1e-4
    assert np.abs(packed(Packed(model), rows)() - alone).max() < 1e-4


def test_a_model_whose_making_was_cut_off_is_made_again(tmp_path: Path):
    (tmp_path / "checkpoint.partial").mkdir()
    assert (Subject(SMALL, tmp_path).checkpoint / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_the_script_measures_what_needs_no_gpu_and_says_why_the_rest_failed(tmp_path: Path):
    arguments = ["--out", str(tmp_path), "--model", "small", "--only", "machine", "make", "peers", "speed"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    record = read(tmp_path)
    outcomes = {name: stage["outcome"] for name, stage in record["stages"].items()}
    assert outcomes == {"machine": "done", "make": "done", "speed": "failed", "peers": "done"}
    assert record["stages"]["speed"]["reason"].startswith("DeviceError: ")
    assert record["conditions"]["model"] == "small shapes: figures mean nothing"
    text = (tmp_path / "report.md").read_text()
    assert "| passages: transformers fp16, sdpa, sorted, padded | " in text
    assert "| speed | failed | " in text
