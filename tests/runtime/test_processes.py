"""What the caller's process does to a reranker: closing it in use, forking, pickling and copying."""

import asyncio
import copy
import ctypes
import faulthandler
import multiprocessing
import os
import pickle
import platform
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from rankrt import ArtifactError, ClosedError, DeviceError, Reranker, Rules
from rankrt.artifact.manifest import Artifact
from rankrt.backends.planner import Capacity
from rankrt.compat import FlagReranker
from rankrt.host.device import Device
from tests.support import FakeBackend, model_of, tiny_artifact

PAIRS = [("zero", "one two three " * n) for n in range(1, 40)]
# A child that hangs is told from one that is slow on a busy machine; a child takes 0.1 s.
CHILD_S = 60
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
# From 3.12 on Python warns of every fork of a process that has threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def two_threads(artifact: Artifact) -> Iterator[Reranker]:
    with Reranker.load(artifact.folder, n_threads=2) as reranker:
        yield reranker


CALLS: dict[str, Callable[[Reranker], object]] = {
    "rank one": lambda r: r.rank("zero", ["one"]),
    "rank many": lambda r: r.rank("zero", ["one"] * 64),
    "rank none": lambda r: r.rank("zero", []),
    "score": lambda r: r.score([("zero", "one")]),
    "evaluate": lambda r: r.evaluate([("zero", "one")]),
    "n_threads": lambda r: r.n_threads,
    "with_rules": lambda r: r.with_rules(max_length=32),
    "with_precision": lambda r: r.with_precision("fp32"),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_every_use_after_closing_is_the_same_named_error(two_threads: Reranker, call: Callable[[Reranker], object]):
    two_threads.rank("zero", ["one"] * 64)
    two_threads.close()
    two_threads.close()
    with pytest.raises(ClosedError, match="this reranker was closed, or one that shares its model; load it again"):
        call(two_threads)


def test_rerankers_over_one_model_are_closed_together(two_threads: Reranker):
    short = two_threads.with_rules(max_length=32)
    short.close()
    with pytest.raises(ClosedError):
        two_threads.rank("zero", ["one"])


def test_calls_that_run_while_another_thread_closes_finish_with_their_scores(two_threads: Reranker):
    expected, answers = two_threads.score(PAIRS).tobytes(), []
    begun = threading.Barrier(9)

    def rank() -> None:
        begun.wait()
        with two_threads._model.use():  # so that none comes too late
            begun.wait()
            answers.append(two_threads._scorer().score(PAIRS * 30).logits.tobytes())

    threads = [threading.Thread(target=rank) for _ in range(8)]
    for thread in threads:
        thread.start()
    begun.wait()
    begun.wait()
    two_threads.close()
    for thread in threads:
        thread.join(CHILD_S)
    assert answers == [expected * 30] * 8
    with pytest.raises(ClosedError):
        two_threads.score(PAIRS)


def test_threads_that_race_with_close_get_scores_or_the_named_error(artifact: Artifact):
    for _ in range(20):
        reranker, said = Reranker.load(artifact.folder, n_threads=2), list[object]()

        def rank(reranker: Reranker = reranker, said: list[object] = said) -> None:
            try:
                while True:
                    said.append(len(reranker.rank("zero", ["one two"] * 64)))
            except ClosedError as error:
                said.append(type(error))

        threads = [threading.Thread(target=rank) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        reranker.close()
        for thread in threads:
            thread.join(CHILD_S)
        assert set(said) <= {64, ClosedError}
        assert said.count(ClosedError) == 4


def test_closing_gives_the_sessions_back(two_threads: Reranker):
    backend = two_threads._scorer().backend
    two_threads.close()
    assert (backend._wide, backend._narrow) == (None, None)  # type: ignore[attr-defined]


@needs_fork
@pytest.mark.parametrize("n_documents", [1, 2, 64])
@pytest.mark.parametrize("prepare", [True, False])
def test_a_child_that_is_forked_after_use_scores_the_same(artifact: Artifact, n_documents: int, prepare: bool):
    with Reranker.load(artifact.folder, n_threads=2, prepare=prepare) as reranker:
        pairs = PAIRS[:n_documents]
        expected = reranker.score(pairs).tobytes()

        def work() -> None:
            assert reranker.score(pairs).tobytes() == expected
            assert reranker.score(pairs).tobytes() == expected

        assert in_child(work) == 0
        assert reranker.score(pairs).tobytes() == expected


@needs_fork
def test_a_child_that_is_forked_after_awaited_calls_awaits_its_own(two_threads: Reranker):
    expected = two_threads.score(PAIRS).tobytes()

    def work() -> None:
        assert asyncio.run(two_threads.ascore(PAIRS)).tobytes() == expected

    work()
    assert in_child(work) == 0


@needs_fork
def test_a_child_that_never_uses_the_reranker_ends_as_any_other(two_threads: Reranker):
    """A session that is destroyed waits for its threads, which no fork copies: the child would wait for ever."""
    two_threads.score(PAIRS)
    assert in_child(lambda: None) == 0
    assert in_child(two_threads.close) == 0


@needs_fork
def test_a_child_of_a_child_scores_the_same(two_threads: Reranker):
    expected = two_threads.score(PAIRS).tobytes()

    def work() -> None:
        assert two_threads.score(PAIRS).tobytes() == expected
        assert in_child(lambda: _equal(two_threads.score(PAIRS).tobytes(), expected)) == 0

    assert in_child(work) == 0


@needs_fork
def test_children_that_are_forked_while_other_threads_score_and_load_score_the_same(
    artifact: Artifact, two_threads: Reranker
):
    expected = two_threads.score(PAIRS).tobytes()

    def load() -> None:
        with Reranker.load(artifact.folder, n_threads=2) as another:
            another.score(PAIRS)

    with _meanwhile(lambda: two_threads.score(PAIRS), 3), _meanwhile(load, 1):
        ended = [in_child(lambda: _equal(two_threads.score(PAIRS).tobytes(), expected)) for _ in range(8)]
    assert ended == [0] * 8


@needs_fork
def test_a_child_of_a_closed_reranker_is_told(two_threads: Reranker):
    two_threads.close()

    def work() -> None:
        with pytest.raises(ClosedError):
            two_threads.score(PAIRS)

    assert in_child(work) == 0


@needs_fork
def test_a_pool_of_forked_processes_ranks(two_threads: Reranker):
    two_threads.rank("zero", ["one"] * 32)
    with multiprocessing.get_context("fork").Pool(2, _kept.append, (two_threads,)) as pool:
        answers = pool.map_async(_n_ranked, [1, 32, 1, 32]).get(CHILD_S)
    assert answers == [1, 32, 1, 32]


@needs_fork
def test_a_forked_child_of_a_process_on_a_gpu_is_told_what_to_do(artifact: Artifact):
    backend = FakeBackend(Capacity(layout="varlen", n_threads=1, n_narrow=1))
    reranker = Reranker(model_of(artifact, backend, Device("cuda")), Rules(max_length=64))

    def work() -> None:
        with pytest.raises(DeviceError, match="a forked process cannot use cuda:0, which its parent used; load"):
            reranker.score(PAIRS)

    assert in_child(work) == 0


def test_a_reranker_is_pickled_by_its_source_and_options(two_threads: Reranker):
    rules = {"max_length": 32, "query_instruction": "four "}
    again = pickle.loads(pickle.dumps(two_threads.with_rules(**rules)))
    with again:
        assert again.rules == two_threads.with_rules(**rules).rules
        assert again.n_threads == 2
        assert again.score(PAIRS).tobytes() == two_threads.with_rules(**rules).score(PAIRS).tobytes()
    assert two_threads.score(PAIRS).size, "it has a model of its own"


def test_the_variant_that_was_chosen_here_is_the_one_that_is_loaded_there(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "both", precisions=("fp32", "int8"))
    with Reranker.load(artifact.folder, precision="int8") as reranker:
        for of in (reranker, reranker.with_precision("fp32")):
            with pickle.loads(pickle.dumps(of)) as again:
                assert again.variant == of.variant


def test_another_process_loads_it_from_the_same_place(artifact: Artifact, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(artifact.folder.parent)
    with Reranker.load(artifact.folder.name) as reranker:
        expected = reranker.score(PAIRS).tolist()
        monkeypatch.chdir("/")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply_async(_scored, (reranker,)).get(CHILD_S) == expected


def test_a_recipe_takes_the_threads_of_the_process_that_loads_it(two_threads: Reranker):
    with pickle.loads(pickle.dumps(two_threads.recipe())).load(n_threads=1) as again:
        assert again.n_threads == 1
        assert again.score(PAIRS).tobytes() == two_threads.score(PAIRS).tobytes()


def test_joblib_s_processes_take_one(artifact: Artifact):
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    with Reranker.load(artifact.folder) as reranker:
        jobs = [joblib.delayed(_scored)(reranker) for _ in range(2)]
        assert joblib.Parallel(n_jobs=2)(jobs) == [reranker.score(PAIRS).tolist()] * 2


def test_a_source_that_is_not_there_any_more_says_so(artifact: Artifact):
    with Reranker.load(artifact.folder) as reranker:
        pickled = pickle.dumps(reranker)
    artifact.folder.rename(artifact.folder.with_name("elsewhere"))
    with pytest.raises(ArtifactError, match=f"which fails on the host {platform.node()}: .*{artifact.folder}"):
        pickle.loads(pickled)


def test_an_artifact_that_is_another_by_now_is_not_taken_for_the_same(artifact: Artifact):
    with Reranker.load(artifact.folder) as reranker:
        pickled = pickle.dumps(reranker)
    shutil.rmtree(artifact.folder)
    tiny_artifact(artifact.folder, points={"fp32": np.arange(10, dtype=np.float32)})
    with pytest.raises(
        ArtifactError, match="has changed since this reranker was pickled: its cpu-fp32 has other files"
    ):
        pickle.loads(pickled)


def test_an_artifact_that_was_only_measured_again_is_the_same(artifact: Artifact):
    with Reranker.load(artifact.folder) as reranker:
        pickled = pickle.dumps(reranker)
    shutil.rmtree(artifact.folder)
    tiny_artifact(artifact.folder, examples=(), verification=None)
    with pickle.loads(pickled) as again:
        assert again.artifact.identity != artifact.identity


def test_a_reranker_that_was_put_together_from_parts_is_not_pickled(artifact: Artifact):
    backend = FakeBackend(Capacity(layout="packed", n_threads=1, n_narrow=1))
    reranker = Reranker(model_of(artifact, backend), Rules(max_length=64))
    with pytest.raises(TypeError, match=r"put together from parts cannot be pickled; use Reranker\.load"):
        pickle.dumps(reranker)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_another_reranker_over_the_same_loaded_model(two_threads: Reranker, copied: Callable[..., Reranker]):
    other = copied(two_threads)
    assert other is not two_threads
    assert other._scorer().backend is two_threads._scorer().backend
    assert copied({"a": two_threads})["a"].score(PAIRS).tobytes() == two_threads.score(PAIRS).tobytes()  # type: ignore[index]


def test_the_interface_of_flagembedding_is_pickled_and_copied_too(artifact: Artifact):
    reranker = FlagReranker(str(artifact.folder), max_length=64, normalize=True, query_instruction_for_rerank="four ")
    pair = ["one", "two"]
    for other in (pickle.loads(pickle.dumps(reranker)), copy.deepcopy(reranker)):
        assert other.compute_score(pair) == reranker.compute_score(pair)
        assert (other.max_length, other.normalize) == (64, True)


_kept: list[Reranker] = []


def _n_ranked(n: int) -> int:
    return len(_kept[0].rank("zero", ["one"] * n))


def _scored(reranker: Reranker) -> list[float]:
    scores: list[float] = reranker.score(PAIRS).tolist()
    return scores


def _equal(one: bytes, other: bytes) -> None:
    assert one == other


def in_child(work: Callable[[], object]) -> int | str:
    """Do the work in a forked child that ends as a program does, with all its finalizers; return its exit status."""
    # pytest's thread that watches for a test that hangs is not in the child, which would wait for it at its end.
    faulthandler.cancel_dump_traceback_later()
    child = os.fork()
    if child == 0:
        status = 0
        try:
            work()
        except BaseException:  # noqa: BLE001 - it must not go up into pytest, of which this is a copy
            traceback.print_exc()
            status = 1
        sys.stderr.flush()
        # What sys.exit would come to if it had not to pass pytest: finalizers, and all that modules hold.
        ctypes.pythonapi.Py_Exit(ctypes.c_int(status))
    stop = time.monotonic() + CHILD_S
    while time.monotonic() < stop:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "it hangs"


@contextmanager
def _meanwhile(work: Callable[[], object], n_threads: int) -> Iterator[None]:
    """Do the work over and over in other threads."""
    is_over = threading.Event()

    def go_on() -> None:
        while not is_over.is_set():
            work()

    threads = [threading.Thread(target=go_on) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
