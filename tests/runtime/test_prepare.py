"""`rankrt prepare`: what is run and compared on a GPU, what is recorded, and what is refused."""

import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rankrt import ArtifactError, DeviceError, InputError, Reranker, ScoreError
from rankrt.artifact.manifest import Artifact
from rankrt.backends.gpu import GpuBackend
from rankrt.backends.tensorrt_engines import buckets, open_tensorrt
from rankrt.cli.main import main
from rankrt.files.cache import HostCache
from rankrt.host.device import Device
from rankrt.loading.placement import Record
from rankrt.loading.prepare import n_steps
from rankrt.loading.prepared import Prepared, find_record
from tests.runtime.gpus import compute_on_the_cpu, gpus, placed, prepare_all, show
from tests.support import POINTS, VERIFICATION, tiny_artifact

CUDA, TENSORRT = Device("cuda"), Device("tensorrt")
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _gpu_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    compute_on_the_cpu(monkeypatch, "NVIDIA H100")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return tiny_artifact(tmp_path / "tiny", targets=("cpu", "cuda", "tensorrt"), max_length=1024)


def drifting(folder: Path, by: float, **fields) -> Artifact:
    """An artifact whose scores for a GPU are off: the example has one "one" and is worth that much more."""
    points = POINTS.copy()
    points[5] += by
    return tiny_artifact(folder, targets=("cuda", "tensorrt"), points={"fp32": points}, **fields)


def prepared(artifact: Artifact, device: Device, **options) -> Record:
    (record,) = prepare_all(artifact, device, **options)
    return record


def test_a_build_says_what_was_compared(artifact: Artifact):
    found = prepared(artifact, CUDA)
    assert (found.n_examples, found.max_difference, found.limit, found.max_length) == (1, 0.0, 1e-3, None)
    assert found.is_verified
    assert find_record(found.key) == placed(artifact, CUDA)[0].record == found


def test_engines_are_built_one_after_the_other_and_told(artifact: Artifact):
    done: list[str] = []
    found = prepared(artifact, TENSORRT, progress=done.append)
    assert done == ["128x128", "32x512", "scores"]
    assert len(done) == n_steps(artifact, TENSORRT)
    assert found.max_length == 512
    assert prepared(artifact, TENSORRT, max_length=1024).max_length == 1024
    assert [record.max_length for record in Prepared().records()] == [1024], "the record of before is replaced"


def test_a_drift_above_the_limit_is_not_recorded(tmp_path: Path):
    artifact = drifting(tmp_path / "drifting", 0.01)
    with pytest.raises(ScoreError, match=r"cuda-fp32 differs from PyTorch by up to 0\.01 .* \(limit 0\.001\)"):
        prepared(artifact, CUDA)
    assert Prepared().records() == []


def test_the_limit_is_twice_what_was_measured_at_export(tmp_path: Path):
    measured = msgspec.structs.replace(VERIFICATION, max_difference=0.1)
    assert prepared(drifting(tmp_path / "small", 0.19, gpu_verification=measured), TENSORRT).limit == pytest.approx(0.2)
    with pytest.raises(ScoreError, match=r"limit 0\.2"):
        prepared(drifting(tmp_path / "large", 0.21, gpu_verification=measured), TENSORRT)


def test_a_variant_that_answers_no_number_is_not_recorded(tmp_path: Path):
    artifact = drifting(tmp_path / "nan", np.nan)
    with pytest.raises(ScoreError, match="returned NaN or infinity"):
        prepared(artifact, TENSORRT)
    assert Prepared().records() == []


def test_every_engine_runs_a_row_of_its_greatest_length_and_a_full_run(artifact: Artifact, monkeypatch):
    shapes: list[tuple[int, int, int]] = []
    run_on = GpuBackend.run_on

    def watched(self, number, encoded, rows):
        shapes.append((number, len(rows), int(encoded.lengths[rows].max())))
        return run_on(self, number, encoded, rows)

    monkeypatch.setattr(GpuBackend, "run_on", watched)
    prepared(artifact, TENSORRT)
    assert {(number, longest) for number, _, longest in shapes} >= {(0, 128), (1, 512)}
    assert max(n for number, n, _ in shapes if number == 1) == 32


def test_engines_that_are_gone_are_not_built_while_somebody_waits(artifact: Artifact, monkeypatch):
    keep_engines(monkeypatch, "rankrt.loading.prepare.open_tensorrt")
    found = prepared(artifact, TENSORRT)
    assert found.engines == ("128x128_1.engine", "32x512_1.engine")
    (Prepared().engines(found.key) / "32x512_1.engine").unlink()
    with pytest.raises(DeviceError, match=r"no engines on this host, or not all of them\. Build them: rankrt prepare"):
        Reranker.load(artifact.folder, device="tensorrt")


def test_engines_that_the_engine_did_not_recognise_are_announced(artifact: Artifact, monkeypatch, caplog):
    keep_engines(monkeypatch, "rankrt.loading.prepare.open_tensorrt")
    prepared(artifact, TENSORRT)
    keep_engines(monkeypatch, "rankrt.backends.tensorrt_engines.open_tensorrt", number=2)
    with caplog.at_level(logging.WARNING), Reranker.load(artifact.folder, device="tensorrt") as reranker:
        assert reranker.score([("one", "two")]).tolist() == [3.0]
    assert "built engines again instead of loading them: 128x128_2.engine, 32x512_2.engine" in caplog.text


def keep_engines(monkeypatch: pytest.MonkeyPatch, place: str, number: int = 1) -> None:
    """Leave a file for each engine, as TensorRT does."""

    def opened(*arguments, engines: Path, max_length: int, **options):
        for bucket in buckets(max_length):
            (engines / f"{bucket.name}_{number}.engine").touch()
        return open_tensorrt(*arguments, engines=engines, max_length=max_length, **options)

    monkeypatch.setattr(place, opened)


def test_without_examples_a_variant_runs_but_is_not_verified(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "bare", targets=("cuda", "tensorrt"), examples=())
    assert not prepared(artifact, CUDA).is_verified
    assert not prepared(artifact, TENSORRT).is_verified
    with pytest.raises(DeviceError, match=r"has no examples to verify it with; name the precision: 'fp32'"):
        Reranker.load(artifact.folder, device="tensorrt")
    with Reranker.load(artifact.folder, device="tensorrt", precision="fp32") as reranker:
        assert reranker.score([("one", "two")]).tolist() == [3.0]


def test_a_changed_file_is_noticed_before_anything_is_prepared(artifact: Artifact):
    path = artifact.folder / "points.cuda.fp32.data"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match="is not the file that was exported"):
        prepared(artifact, CUDA)


@pytest.mark.parametrize("max_length", [0, 1025])
def test_a_length_that_the_model_does_not_take_is_refused(artifact: Artifact, max_length: int):
    with pytest.raises(InputError, match=f"max_length={max_length}, expected 1 to 1024"):
        prepared(artifact, TENSORRT, max_length=max_length)


def test_a_record_that_cannot_be_read_is_none(artifact: Artifact):
    found = prepared(artifact, CUDA)
    (Prepared().engines(found.key) / "record.json").write_text("{}")
    assert Prepared().record(found.key) is None
    assert Prepared().records() == []


def test_the_command_says_what_is_ready(artifact: Artifact, capsys: Output):
    assert main(["prepare", str(artifact.folder), "--device", "tensorrt"]) == 0
    assert capsys.readouterr().out == (
        "tensorrt-fp32 is ready on NVIDIA H100 for rows of up to 512 tokens: 1 examples differ from PyTorch by up to"
        " 0.0e+00 (limit 1.0e-03)\n"
    )
    assert main(["cache", "list"]) == 0
    assert "tiny tensorrt-fp32  gpu NVIDIA H100, driver 580.65.06" in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0
    assert Prepared().records() == []


def test_the_command_prepares_for_the_cpu_where_there_is_no_gpu(tmp_path: Path, monkeypatch, capsys: Output):
    show(monkeypatch, gpus())
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    artifact = tiny_artifact(tmp_path / "cpu")
    assert main(["prepare", str(artifact.folder)]) == 0
    assert capsys.readouterr().out == "cpu-fp32 is ready on this host\n"
    (entry,) = (item for item in HostCache().items() if item.state != "lock")
    assert (entry.kind, entry.variant) == ("prepared", "cpu-fp32")


def test_the_command_without_a_gpu_is_one_sentence(artifact: Artifact, monkeypatch, capsys: Output):
    show(monkeypatch, gpus())
    assert main(["prepare", str(artifact.folder), "--device", "cuda"]) == 1
    assert capsys.readouterr().err.startswith("rankrt: error: device 'cuda:0' needs an NVIDIA GPU")


def test_the_command_for_a_target_that_was_not_exported_says_how(tmp_path: Path, capsys: Output):
    artifact = tiny_artifact(tmp_path / "cpu")
    assert main(["prepare", str(artifact.folder), "--device", "tensorrt"]) == 1
    assert "Export one: rankrt export tests/tiny FOLDER --target tensorrt" in capsys.readouterr().err


def test_rerank_takes_a_device(artifact: Artifact, tmp_path: Path, capsys: Output):
    (tmp_path / "documents.txt").write_text("one\nthree\n")
    rerank = ["rerank", str(artifact.folder), "--query", "zero", "--documents", str(tmp_path / "documents.txt")]
    assert main([*rerank, "--device", "cuda"]) == 1
    assert "was never verified" in capsys.readouterr().err
    main(["prepare", str(artifact.folder), "--device", "cuda"])
    capsys.readouterr()
    assert main([*rerank, "--device", "cuda", "--top-n", "1"]) == 0
    assert capsys.readouterr().out.split() == ["1", "3.0000", "line", "2", "three"]
    assert main([*rerank, "--device", "gpu"]) == 1
    assert "--device gpu, expected" in capsys.readouterr().err


def test_a_device_error_is_what_it_is(artifact: Artifact):
    with pytest.raises(DeviceError, match="'cuda:3' is not there"):
        prepared(artifact, Device("cuda", 3))
