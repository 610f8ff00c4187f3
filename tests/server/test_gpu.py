"""A served model on a GPU: large runs, two in flight, one worker, and engines that take no longer rows."""

from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra server")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from rankrt.artifact.manifest import Artifact, open_artifact  # noqa: E402
from rankrt.cli.main import main  # noqa: E402
from rankrt.host.device import Device  # noqa: E402
from rankrt.server.cli import _for_gpu  # noqa: E402
from rankrt.server.models import LoadOptions  # noqa: E402
from rankrt.server.service import Settings  # noqa: E402
from rankrt.server.workers.local import LocalWorker  # noqa: E402
from rankrt.server.workers.process import _Load, _obey  # noqa: E402
from tests.runtime.gpus import compute_on_the_cpu, gpus, prepare_all, show  # noqa: E402
from tests.server.support import serving_with_service  # noqa: E402
from tests.support import tiny_artifact  # noqa: E402


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    compute_on_the_cpu(monkeypatch, "NVIDIA H100")
    folder = tmp_path / "tiny"
    tiny_artifact(folder, targets=("cpu", "cuda", "tensorrt"), max_length=128)
    artifact = open_artifact(folder)
    for device in (Device("cuda"), Device("tensorrt")):
        prepare_all(artifact, device, max_length=64)
    return artifact


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_requests_are_answered_from_a_gpu(artifact: Artifact, device: str):
    load = LoadOptions(device=device, max_length=64)
    with serving_with_service(artifact.folder, load=load, n_threads=4) as (address, service):
        body = {"query": "zero", "texts": ["one", "three", "two " * 9], "raw_scores": True}
        hits = httpx.post(f"{address}/rerank", json=body).json()
        (model,) = service.models
    assert [(hit["index"], hit["score"]) for hit in hits] == [(2, 18.0), (1, 3.0), (0, 1.0)]
    assert model.variant.name == f"{device}-fp32"
    assert (model.served.capacity.is_gpu, model.served.capacity.n_narrow) == (True, 2)


def test_a_large_request_is_tokenized_by_all_threads_in_its_order(artifact: Artifact):
    texts = [" ".join(["one"] * (1 + i % 7)) for i in range(1000)]
    load = LoadOptions(device="cuda", max_length=64)
    with serving_with_service(artifact.folder, load=load, n_threads=4) as (address, _):
        body = {"query": "zero", "texts": texts, "raw_scores": True}
        hits = httpx.post(f"{address}/rerank", json=body, timeout=30).json()
    assert {hit["index"]: hit["score"] for hit in hits} == {i: 1 + i % 7 for i in range(1000)}


def test_no_request_asks_for_rows_that_the_engines_do_not_take(artifact: Artifact):
    load = LoadOptions(device="tensorrt", max_length=64)
    with serving_with_service(artifact.folder, load=load) as (_, service):
        (model,) = service.models
        assert (model.artifact.manifest.max_length, model.limit) == (128, 64)


def test_a_worker_process_is_told_the_device(artifact: Artifact):
    order = _Load(
        key="0",
        folder=str(artifact.folder),
        identity=artifact.identity,
        manifest=artifact.manifest,
        variant=artifact.manifest.variants[1],
        device=Device("cuda"),
        options={"device": "cuda", "prepare": False},
    )
    worker = LocalWorker(2)
    loaded = _obey(worker, order)
    worker.close()
    capacity = loaded.capacity  # type: ignore[union-attr]
    assert (capacity.layout, capacity.n_threads, capacity.n_narrow) == ("varlen", 1, 2)


@pytest.mark.parametrize(
    ("n_workers", "n_threads", "expected"), [(None, 16, (1, 16)), (None, 1, (1, 2)), (0, 1, (0, 2)), (3, 4, (3, 4))]
)
def test_one_process_has_the_gpu_unless_more_are_asked_for(n_workers, n_threads, expected):
    settings = _for_gpu(Settings(models=[], n_workers=n_workers, n_threads=n_threads))
    assert (settings.n_workers, settings.n_threads) == expected


def test_serving_on_a_gpu_that_is_not_there_is_one_sentence(artifact: Artifact, monkeypatch, capsys):
    show(monkeypatch, gpus())
    assert main(["serve", str(artifact.folder), "--device", "cuda", "--port", "0"]) == 1
    assert capsys.readouterr().err.startswith("rankrt: error: device 'cuda:0' needs an NVIDIA GPU")
