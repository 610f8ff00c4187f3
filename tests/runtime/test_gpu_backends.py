"""What runs on a GPU, run on the CPU: inputs, bound buffers, runs in flight, engines by length, and the same scores."""

import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankrt import ArtifactError, DeviceError
from rankrt.arrays import Int32Array
from rankrt.artifact.manifest import Artifact
from rankrt.backends.batch import BLOCK_TOKENS, packed, padded, stacked, varlen
from rankrt.backends.cpu_encoder import CpuEncoder
from rankrt.backends.cuda import cuda_settings, open_cuda
from rankrt.backends.gpu import GpuBackend, placements
from rankrt.backends.in_flight import N_IN_FLIGHT, InFlight, Memory, Slot
from rankrt.backends.planner import GPU_RUN_TOKENS, Filling, divide, padded_length
from rankrt.backends.session import gpu_session_options, open_session, session_options
from rankrt.backends.tensorrt_engines import Bucket, buckets, open_tensorrt, tensorrt_settings
from rankrt.host.device import Device
from rankrt.text.pairs import Encoded
from tests.runtime.gpus import compute_on_the_cpu
from tests.support import in_threads, tiny_artifact

CUDA, TENSORRT = Device("cuda"), Device("tensorrt")


def rows_of(lengths: list[int], seed: int = 0) -> Encoded:
    """Rows of words that are worth points, of these lengths."""
    ids = np.random.default_rng(seed).integers(4, 9, sum(lengths)).astype(np.int32)
    return Encoded.of_rows(np.split(ids, np.cumsum(lengths)[:-1]))


def scores(backend: Any, encoded: Encoded) -> list[float]:
    found: list[float] = backend.logits(encoded).last.tolist()
    return found


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    compute_on_the_cpu(monkeypatch, "A GPU")
    return tiny_artifact(tmp_path / "tiny", targets=("cpu", "cuda", "tensorrt"), max_length=8192)


@pytest.fixture
def cuda(artifact: Artifact) -> Iterator[GpuBackend]:
    backend = open_cuda(artifact.path("cuda-fp32.onnx"), "varlen", CUDA)
    yield backend
    backend.close()


@pytest.fixture
def tensorrt(artifact: Artifact, tmp_path: Path) -> Iterator[GpuBackend]:
    graph = artifact.path("tensorrt-fp32.onnx")
    backend = open_tensorrt(graph, "padded", TENSORRT, max_length=512, engines=tmp_path, timings=tmp_path)
    yield backend
    backend.close()


def test_flat_rows_and_padded_rows_have_the_scores_of_packed_ones(artifact, cuda: GpuBackend, tensorrt: GpuBackend):
    encoded = rows_of(np.random.default_rng(1).integers(4, 513, 200).tolist())
    packed = CpuEncoder(artifact.path("cpu-fp32.onnx"), "packed", n_threads=1)
    expected = scores(packed, encoded)
    assert scores(cuda, encoded) == expected
    assert scores(tensorrt, encoded) == expected


def test_a_row_longer_than_a_whole_run_is_scored(cuda: GpuBackend):
    encoded = rows_of([GPU_RUN_TOKENS + 1, 5])
    assert scores(cuda, encoded) == [float((encoded.row(row) - 4).sum()) for row in range(2)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_flat_inputs_say_where_every_token_is(lengths: list[int]):
    encoded = rows_of(lengths)
    inputs = varlen(encoded, np.arange(len(lengths)))
    places = inputs["token_offset"].ravel()
    tokens, filled = places[: sum(lengths)], places[sum(lengths) :]
    longest = max(lengths)
    assert inputs["token_offset"].shape == (len(lengths), longest)
    assert tokens.tolist() == [row * longest + i for row, n in enumerate(lengths) for i in range(n)]
    assert sorted(places.tolist()) == list(range(len(lengths) * longest))
    assert filled.tolist() == sorted(filled.tolist())
    assert inputs["positions"].tolist() == [i for n in lengths for i in range(n)]
    assert inputs["row_offsets"].tolist() == encoded.offsets.tolist()
    assert inputs["token_rows"].tolist() == [row for row, n in enumerate(lengths) for _ in range(n)]
    assert inputs["blocks"].tolist() == list(range(-(-sum(lengths) // BLOCK_TOKENS)))


def test_tokens_of_the_passage_are_of_type_1_in_every_layout():
    rows = [np.arange(n, dtype=np.int32) for n in (5, 3, 4)]
    encoded = Encoded.of_rows(rows, passage_starts=[3, 1, 2])
    chosen = np.array([2, 0])
    for batch in (packed, varlen):
        assert batch(encoded, chosen)["token_type_ids"].tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1]
    assert padded(encoded, chosen)["token_type_ids"].tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert stacked(encoded, np.array([0, 0]))["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]] * 2


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_padded_inputs_begin_at_the_left(lengths: list[int]):
    encoded = rows_of(lengths)
    inputs = padded(encoded, np.arange(len(lengths)))
    assert inputs["lengths"].tolist() == lengths
    for row, n in enumerate(lengths):
        assert inputs["input_ids"][row, :n].tolist() == encoded.row(row).tolist()


def test_all_inputs_are_int32(cuda: GpuBackend):
    encoded = rows_of([5, 3])
    for inputs in (varlen(encoded, np.arange(2)), padded(encoded, np.arange(2))):
        assert {array.dtype for array in inputs.values()} == {np.dtype(np.int32)}


def test_a_slot_uses_its_buffers_again(artifact: Artifact):
    session = open_session(artifact.path("cpu-fp32.onnx"), session_options(1))
    slot = Slot(session, Memory("cpu"))
    addresses = set()
    for n in (3, 200, 7, 1000):
        encoded = rows_of([n, 5])
        inputs = {"input_ids": encoded.ids, "row_offsets": encoded.offsets.astype(np.int32)}
        assert slot.run(inputs, 2).tolist() == [float((encoded.row(row) - 4).sum()) for row in range(2)]
        addresses |= {device.data_ptr() for _, device in slot._buffers.values()}
    assert len(addresses) == 1


class Binding:
    """Takes what a run binds and leaves it alone."""

    def bind_input(self, *arguments: object) -> None:
        pass

    bind_output = bind_input


class CountingSession:
    """Counts how many runs are on their way, and holds them until it is told to go on."""

    def __init__(self) -> None:
        self.n_running, self.most_running = 0, 0
        self.go_on = threading.Semaphore(0)
        self._lock = threading.Lock()

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="input_ids")]

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding) -> None:
        with self._lock:
            self.n_running += 1
            self.most_running = max(self.most_running, self.n_running)
        if not self.go_on.acquire(timeout=5):
            raise RuntimeError("out of memory")
        with self._lock:
            self.n_running -= 1


def _inputs(n: int = 4) -> Mapping[str, Int32Array]:
    return {"input_ids": np.zeros(n, np.int32)}


def test_no_more_runs_are_in_flight_than_there_are_slots():
    session = CountingSession()
    in_flight = InFlight(session, Memory("cpu"))

    def run(i: object) -> int:
        if i == 0:  # the one that lets the others go on
            while session.n_running < N_IN_FLIGHT:
                threading.Event().wait(0.001)
            session.go_on.release(100)
        else:
            in_flight.run(_inputs(), 1)
        return 1

    assert sum(in_threads(7, run)) == 7  # type: ignore[arg-type]
    assert session.most_running == N_IN_FLIGHT


def test_a_run_that_fails_gives_its_slot_back():
    session = CountingSession()
    session.go_on = SimpleNamespace(acquire=lambda timeout: False)  # type: ignore[assignment]
    in_flight = InFlight(session, Memory("cpu"))
    for _ in range(2 * N_IN_FLIGHT):
        with pytest.raises(RuntimeError, match="out of memory"):
            in_flight.run(_inputs(), 1)


def test_what_a_gpu_cannot_do_is_an_error_of_ours(cuda: GpuBackend):
    encoded = rows_of([5, 3])
    encoded.ids[0] = 10**6  # a token that the model does not have
    with pytest.raises(DeviceError, match="the GPU failed on 2 rows of up to 5 tokens: "):
        scores(cuda, encoded)


def test_closing_lets_go_of_the_sessions(cuda: GpuBackend):
    session = weakref.ref(cuda.sessions[0].session)
    cuda.close()
    assert session() is None


def test_sixteen_threads_share_a_backend(cuda: GpuBackend):
    batches = [rows_of([5, 80, 300, 20], seed=i) for i in range(16)]
    answers = in_threads(16, lambda i: [scores(cuda, batches[i]) for _ in range(10)])
    assert all(answer == [scores(cuda, batch)] * 10 for answer, batch in zip(answers, batches, strict=True))


def test_cuda_is_told_to_be_exact_and_to_leave_cudnn_s_attention_alone():
    assert cuda_settings(CUDA) == {"sdpa_kernel": "19", "use_tf32": "0"}
    assert cuda_settings(Device("cuda", 1))["device_id"] == "1"
    assert cuda_settings(CUDA, 1 << 30)["gpu_mem_limit"] == str(1 << 30)


def test_a_memory_limit_counts_the_weights(artifact: Artifact):
    graph = artifact.path("cpu-fp32.onnx")
    with pytest.raises(DeviceError, match=r"allows 1\.00 GiB, but the weights of cpu-fp32 take 2\.00 GiB"):
        open_cuda(graph, "varlen", CUDA, n_weight_bytes=2 << 30, memory_bytes=1 << 30)


def test_every_option_is_one_that_the_session_accepts(artifact: Artifact):
    open_session(artifact.path("cpu-fp32.onnx"), gpu_session_options("ORT_ENABLE_EXTENDED", is_strict=False))


def test_a_session_that_would_run_elsewhere_is_refused(artifact: Artifact):
    """What ONNX Runtime does where a GPU's provider is missing: it takes the CPU and says nothing."""
    with pytest.raises((ArtifactError, DeviceError), match=r"CPU EP|instead of CUDAExecutionProvider|cannot load"):
        open_session(artifact.path("cpu-fp32.onnx"), gpu_session_options("ORT_ENABLE_BASIC"), "CUDAExecutionProvider")


def test_where_nodes_run_is_known(cuda: GpuBackend):
    counts = placements(cuda.sessions[0].session)
    assert counts.keys() == {"CPUExecutionProvider"}
    assert counts["CPUExecutionProvider"] > 5


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [
        (64, [(256, 64)]),
        (128, [(128, 128)]),
        (512, [(128, 128), (32, 512)]),
        (1024, [(128, 128), (32, 512), (16, 1024)]),
        (8192, [(128, 128), (32, 512), (8, 2048), (2, 8192)]),
    ],
)
def test_buckets_are_few_and_end_with_the_longest_row(max_length: int, expected: list[tuple[int, int]]):
    assert [(bucket.n_rows, bucket.longest) for bucket in buckets(max_length)] == expected


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=200), max_length=st.sampled_from([512, 600, 8192]))
def test_every_planned_run_fits_the_engine_it_goes_to(lengths: list[int], max_length: int):
    for run in divide(np.array(lengths), GPU_RUN_TOKENS, "padded"):
        longest = max(lengths[row] for row in run)
        bucket = next(bucket for bucket in buckets(max_length) if longest <= bucket.longest)
        assert len(run) <= bucket.n_rows
        assert padded_length(longest) >= longest


def test_the_first_row_of_a_run_may_have_any_length():
    assert Filling().takes(100_000, GPU_RUN_TOKENS, "padded")


def test_an_engine_is_told_its_shapes_its_caches_and_no_precision(tmp_path: Path):
    settings = tensorrt_settings(
        Device("tensorrt", 1), Bucket(n_rows=32, longest=512), tmp_path / "engines", tmp_path / "timings"
    )
    assert settings == {
        "trt_load_user_initializer": "0",
        "device_id": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path / "engines"),
        "trt_engine_cache_prefix": "32x512",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path / "timings"),
        "trt_profile_min_shapes": "input_ids:1x1,token_type_ids:1x1,lengths:1",
        "trt_profile_opt_shapes": "input_ids:32x512,token_type_ids:32x512,lengths:32",
        "trt_profile_max_shapes": "input_ids:32x512,token_type_ids:32x512,lengths:32",
    }


def test_weights_beyond_a_protobuf_are_handed_over_apart(tmp_path: Path):
    bucket = Bucket(n_rows=32, longest=512)
    settings = tensorrt_settings(TENSORRT, bucket, tmp_path, tmp_path, n_weight_bytes=2_270_000_000)
    assert settings["trt_load_user_initializer"] == "1"


def test_a_run_goes_to_the_shortest_engine_that_takes_it(tensorrt: GpuBackend):
    assert [found.longest for found in tensorrt.sessions] == [128, 512]
    assert [tensorrt.number_for(n) for n in (1, 128, 129, 512)] == [0, 0, 1, 1]
    assert tensorrt.capacity.longest_row == 512
