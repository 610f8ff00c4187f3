"""What a model keeps in memory between runs is given back, and scores do not change by it."""

import mmap
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from rankrt import Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.backends import cpu_lanes
from rankrt.backends.idle import Idle
from rankrt.host.memory import Mapping, changing_mappings, mappings, unmap_largest
from rankrt.loading.prepared import Prepared
from tests.support import POINTS, in_threads, tiny_artifact

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells what is mapped in /proc")

SMAPS = """\
7f01e9600000-7f01e9602000 rw-p 00000000 fe:00 2146401                    /cache/a folder/weights.data
Size:                  8 kB
Pss:                   6 kB
Anonymous:             4 kB
THPeligible:           0
VmFlags: rd wr mr mw me
7f0225b00000-7f0225b01000 rw-p 00000000 00:00 0
Pss:                   4 kB
Anonymous:             4 kB
7ffd00000000-7ffd00001000 rw-p 00000000 00:00 0                          [stack]
"""


def mapped(path: Path) -> mmap.mmap:
    """Map a file as ONNX Runtime maps weights: what is written stays in memory."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def resident_kb(folder: Path) -> int:
    return sum(found.pss_kb for found in mappings() if found.file.startswith(f"{folder}/"))


def test_what_is_mapped_is_read_from_the_kernels_account(tmp_path: Path):
    (tmp_path / "smaps").write_text(SMAPS)
    file, heap, stack = mappings(tmp_path / "smaps")
    assert file == Mapping(0x7F01E9600000, 8192, "/cache/a folder/weights.data", 6, 4)
    assert (heap.file, heap.anonymous_kb) == ("", 4)
    assert (stack.file, stack.pss_kb) == ("", 0)


def test_a_kernel_that_does_not_tell_is_no_error(tmp_path: Path):
    assert mappings(tmp_path / "missing") == []


@on_linux
def test_the_largest_file_is_let_go_and_read_again(tmp_path: Path):
    (tmp_path / "table").write_bytes(b"x" * (1 << 20))
    (tmp_path / "matrix").write_bytes(b"y" * (1 << 16))
    with mapped(tmp_path / "table") as table, mapped(tmp_path / "matrix") as matrix:
        assert (len(set(table[:])), len(set(matrix[:]))) == (1, 1)
        before = resident_kb(tmp_path)
        unmap_largest(tmp_path)
        assert before - resident_kb(tmp_path) == pytest.approx(1024, abs=1)
        assert table[-1:] == b"x"


@on_linux
def test_a_folder_of_links_lets_go_of_the_files_that_they_lead_to(tmp_path: Path):
    """The hub's cache keeps a snapshot as links to blobs, and the kernel's account has the blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (blobs / "0a").write_bytes(b"x" * (1 << 20))
    (snapshot / "table").symlink_to("../blobs/0a")
    with mapped(snapshot / "table") as table:
        assert len(set(table[:])) == 1
        before = resident_kb(blobs)
        unmap_largest(snapshot)
        assert before - resident_kb(blobs) == pytest.approx(1024, abs=1)


@on_linux
def test_what_was_written_into_a_mapping_is_kept(tmp_path: Path):
    (tmp_path / "table").write_bytes(b"x" * (1 << 20))
    with mapped(tmp_path / "table") as table:
        table[0:1] = b"z"
        unmap_largest(tmp_path)
        assert table[0:1] == b"z"


@on_linux
def test_nothing_is_let_go_while_a_session_is_opened_or_goes(tmp_path: Path):
    (tmp_path / "table").write_bytes(b"x" * (1 << 20))
    with mapped(tmp_path / "table") as table, changing_mappings():
        assert len(set(table[:])) == 1
        before = resident_kb(tmp_path)
        unmap_largest(tmp_path)
        assert resident_kb(tmp_path) == before


@on_linux
def test_models_come_and_go_while_pages_are_let_go(tmp_path: Path):
    """Pages that another thread had mapped anew at the same address were lost: a crash, or other scores."""
    artifact = tiny_artifact(tmp_path / "tiny", points={"fp32": np.repeat(POINTS, 20_000)})
    with Reranker.load(artifact.folder) as reranker:
        folder = Prepared().folder / next(path for path in Prepared().folder.iterdir() if path.is_dir())
        expected = reranker.score([("one", "two three")]).tolist()
    is_over = threading.Event()

    def release() -> None:
        while not is_over.wait(0.002):  # without a pause it keeps the lock: 44 s, and an hour in a process with torch
            unmap_largest(folder)

    releasing = threading.Thread(target=release)
    releasing.start()

    def come_and_go(i: int) -> list[list[float]]:
        found = []
        for _ in range(10):
            with Reranker.load(artifact.folder) as reranker:
                found.append(reranker.score([("one", "two three")]).tolist())
        return found

    answers = in_threads(3, come_and_go)
    is_over.set()
    releasing.join()
    assert answers == [[expected] * 10] * 3


def test_a_model_that_is_idle_gives_memory_back_and_scores_as_before(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
):
    released: SimpleQueue[Path] = SimpleQueue()

    def release(folder: Path) -> None:
        unmap_largest(folder)
        released.put(folder)

    monkeypatch.setattr(cpu_lanes, "_IDLE_S", 0.02)
    monkeypatch.setattr(cpu_lanes, "unmap_largest", release)
    pairs = [("one", "two three"), ("four", "")]
    with Reranker.load(artifact.folder) as reranker:
        assert reranker.score(pairs).tolist() == [6.0, 4.0]
        assert released.get(timeout=5).parent == Prepared().folder
        assert reranker.score(pairs).tolist() == [6.0, 4.0]


def test_a_model_that_is_never_closed_ends_with_the_interpreter_in_silence(artifact: Artifact):
    # A module of the interpreter outlives rankrt's, which are empty when the model goes.
    code = (
        "import sys, threading; from rankrt import Reranker;"
        "threading.kept = Reranker.load(sys.argv[1], prepare=False); print(threading.kept.score([('one', 'two')]))"
    )
    command = [sys.executable, "-c", code, str(artifact.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("[3.]\n", "", 0)


def test_idle_calls_back_once_when_nothing_has_happened_for_a_while():
    called = threading.Event()
    times: list[float] = []

    def call() -> None:
        times.append(time.monotonic())
        called.set()

    idle = Idle(call, 0.05)
    for _ in range(5):
        with idle.busy():
            pass
        last = time.monotonic()
        time.sleep(0.02)
    assert called.wait(5)
    time.sleep(0.2)
    assert len(times) == 1
    assert times[0] - last >= 0.05
    called.clear()
    with idle.busy():
        pass
    assert called.wait(5)


def test_what_takes_longer_than_the_pause_is_not_idle():
    called = threading.Event()
    idle = Idle(called.set, 0.05)
    with idle.busy():
        pass
    with idle.busy():
        with idle.busy():
            pass
        assert not called.wait(0.3), "one of two is still busy"
    assert called.wait(5)


def test_a_thread_that_failed_to_start_is_replaced_and_blocks_nothing(monkeypatch: pytest.MonkeyPatch):
    """Without memory a new thread ends before it says that it runs. threading.Thread.start would wait for ever."""
    called = threading.Event()
    idle = Idle(called.set, 0.05)
    with monkeypatch.context() as without_memory:
        without_memory.setattr("_thread.start_new_thread", lambda function, arguments: 0)
        with idle.busy():
            pass
    assert not called.wait(0.2)
    with idle.busy():
        pass
    assert called.wait(5)


def test_idle_that_was_closed_does_not_call_back():
    times: list[int] = []
    idle = Idle(lambda: times.append(1), 0.02)
    with idle.busy():
        pass
    with idle.busy():
        idle.close()
    time.sleep(0.1)
    assert times == []
