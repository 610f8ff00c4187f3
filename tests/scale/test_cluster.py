"""`rankrt score --ray` on a real cluster of three nodes: the same bits whatever dies meanwhile, and what is refused."""

import contextlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankrt import InputError, RankrtError, Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.cli.bulk import cluster as clusters
from rankrt.cli.bulk.chunks import Names, Rows, Scored
from rankrt.cli.bulk.probe import NO_TOKEN, reason_of
from rankrt.cli.inputs import Place, PlacedPair
from rankrt.cli.main import main
from rankrt.errors import DeviceError, ScoreError
from rankrt.host.device import Device
from tests.scale.conftest import WORDS, free_port
from tests.scale.test_folders import write

Output = pytest.CaptureFixture[str]
pytestmark = pytest.mark.filterwarnings("ignore")
CHUNKS = [[("one", " ".join([WORDS[(i + n) % 5]] * (1 + i % 9))) for i in range(64)] for n in range(40)]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def rows(chunks: Sequence[Any]) -> Iterator[Rows]:
    for n, pairs in enumerate(chunks):
        places = [Place(file=f"chunk {n}", unit="line", number=i) for i in range(len(pairs))]
        placed = [PlacedPair(pair=pair, fields={}, place=place) for pair, place in zip(pairs, places, strict=True)]
        yield Rows(placed=placed, names=Names())


def bytes_of(scored: Iterator[Scored]) -> list[bytes]:
    return [part.logits.tobytes() for part in scored]


@pytest.fixture
def connected(cluster: Any) -> Iterator[Any]:
    with clusters.connected(cluster.address):
        yield cluster


def actors() -> list[int]:
    """Return the processes of the actors that score."""
    return processes("ray::Scorer")


def processes(name: str) -> list[int]:
    """Return the processes with a name among the children of the nodes that this process started."""
    psutil: Any = pytest.importorskip("psutil")
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            found += [child.pid] if name in " ".join(child.cmdline()) else []
    return found


def client_address(cluster: Any) -> str:
    return f"ray://127.0.0.1:{cluster.head_node._ray_params.ray_client_server_port}"


def test_a_folder_scored_on_a_cluster_has_the_bytes_of_one_process(
    cluster: Any, artifact: Artifact, tmp_path: Path, capsys: Output
):
    for number in range(3):
        write(tmp_path / "pairs" / f"{number}.parquet", 600)
    assert run("score", artifact.folder, tmp_path / "pairs", "--out", tmp_path / "one") == 0
    assert run("score", artifact.folder, tmp_path / "pairs", "--out", tmp_path / "ray", "--ray", cluster.address) == 0
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "ray" / path.name).read_bytes() == path.read_bytes()


def test_what_an_actor_or_a_node_had_in_hand_is_scored_by_others(connected: Any, reranker: Reranker):
    """Actors are killed while they have two chunks in hand each, and then a node with the actor on it."""
    expected = [reranker.score(pairs).tobytes() for pairs in CHUNKS]
    node = connected.add_node(num_cpus=1)
    scored = clusters.score_on_cluster(reranker, None, None, rows(CHUNKS))
    found = [next(scored).logits.tobytes()]
    before = actors()
    os.kill(before[0], signal.SIGKILL)
    found += [next(scored).logits.tobytes() for _ in range(9)]
    connected.remove_node(node, allow_graceful=False)
    assert found + bytes_of(scored) == expected
    limit = time.monotonic() + 20
    while actors() and time.monotonic() < limit:
        time.sleep(0.1)
    assert actors() == [], "none is left when all is scored"


def test_by_ray_s_client_a_folder_has_the_same_bytes(cluster: Any, artifact: Artifact, tmp_path: Path, capsys: Output):
    """In a process of its own, as a user runs it: a client's connection is the whole process's."""
    write(tmp_path / "pairs" / "a.parquet", 600)
    command = [sys.executable, "-m", "rankrt", "score", str(artifact.folder), str(tmp_path / "pairs"), "--out"]
    done = subprocess.run(
        [*command, str(tmp_path / "ray"), "--ray", client_address(cluster)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert run("score", artifact.folder, tmp_path / "pairs", "--out", tmp_path / "one") == 0
    assert (tmp_path / "ray" / "a.parquet").read_bytes() == (tmp_path / "one" / "a.parquet").read_bytes()


def test_a_client_whose_connection_is_lost_says_so(cluster: Any, reranker: Reranker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_CLIENT_RECONNECT_GRACE_PERIOD", "0")  # seconds
    with (
        clusters.connected(client_address(cluster)),
        pytest.raises(RankrtError, match=r"the connection to the Ray cluster was lost: .* the same command continues"),
    ):
        for _ in clusters.score_on_cluster(reranker, 1, None, rows(CHUNKS)):
            for server in processes("--mode=specific-server"):
                os.kill(server, signal.SIGKILL)


def test_a_pair_that_cannot_be_scored_is_named(connected: Any, reranker: Reranker):
    chunks = [*CHUNKS[:3], [("one", "two"), ("one", "nan")]]
    with pytest.raises(ScoreError, match="chunk 3, line 1"):
        list(clusters.score_on_cluster(reranker, 2, None, rows(chunks)))


def test_a_chunk_that_kills_its_actors_ends_the_job_and_is_named(
    connected: Any, reranker: Reranker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(clusters, "Scorer", _DiesOfFour)
    chunks = [[("one", "two")], [("one", "four")]]  # both are in the hands of the first actor that dies
    with pytest.raises(
        RankrtError, match="3 actors died while they scored the pairs from chunk 1, line 0 to chunk 1, line 0"
    ):
        list(clusters.score_on_cluster(reranker, 1, None, rows(chunks)))


class _DiesOfFour(clusters.Scorer):
    def score(self, pairs: Any) -> Any:
        if "four" in pairs[0]:
            os._exit(1)
        return super().score(pairs)


def test_a_node_without_the_artifact_is_named_with_the_path(connected: Any, artifact: Artifact):
    with Reranker.load(artifact.folder) as reranker:
        artifact.folder.rename(artifact.folder.with_name("elsewhere"))
        with pytest.raises(RankrtError, match=f"fails on the host {socket.gethostname()}: {artifact.folder}"):
            list(clusters.score_on_cluster(reranker, 1, None, rows(CHUNKS)))


def test_a_cluster_without_room_says_what_is_free(connected: Any, reranker: Reranker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clusters, "_START_S", 1)
    monkeypatch.setattr(clusters, "_rooms", lambda *_: [clusters._Room(n_cpus=99)])
    with pytest.raises(
        RankrtError,
        match=r"no actor has started for 1 s, of 1 that were asked for\. Each needs 99 CPUs, and",
    ):
        list(clusters.score_on_cluster(reranker, 1, None, rows(CHUNKS)))


class _OnTheSecondGpu:
    """A reranker as it would be on this host's second GPU, by what a cluster asks of it."""

    device = Device("cuda", 1)

    def __init__(self, reranker: Reranker) -> None:
        recipe = reranker.recipe()
        options = replace(recipe.origin.options, device=str(self.device), instruction_set=None)
        self.variant = reranker.variant
        self.recipe = lambda: replace(recipe, origin=replace(recipe.origin, options=options))


def test_a_model_on_a_gpu_asks_for_one_and_a_node_that_only_claims_to_have_it_is_named(
    connected: Any, reranker: Reranker
):
    """The node's GPU is the first one of the actor, whatever number it has here."""
    on_gpu: Any = _OnTheSecondGpu(reranker)
    assert clusters._rooms(on_gpu, None, None) == [clusters._Room(n_cpus=1, n_gpus=1)]
    with pytest.raises(DeviceError, match=f"on the host {socket.gethostname()}: device 'cuda:0' needs "):
        list(clusters.score_on_cluster(on_gpu, None, None, rows(CHUNKS[:1])))
    with pytest.raises(InputError, match="n_threads=2 is for the CPU, not for cuda:1; leave it out"):
        clusters._rooms(on_gpu, None, 2)


def test_more_threads_than_a_node_has_are_refused(cluster: Any, artifact: Artifact, tmp_path: Path, capsys: Output):
    pairs = write(tmp_path / "pairs.parquet", 9)
    assert run("score", artifact.folder, pairs, "--ray", cluster.address, "--threads", 64) == 1
    assert "--threads 64, but the largest node of the Ray cluster has 1 of Ray's CPUs" in capsys.readouterr().err


def test_an_address_where_nothing_answers_is_one_error_in_bounded_time(
    artifact: Artifact, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setattr(clusters, "_CONNECT_S", 6)
    pairs = write(tmp_path / "pairs.parquet", 9)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and never says a word
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        assert run("score", artifact.folder, pairs, "--ray", address) == 1
    assert time.monotonic() - started < 30
    error = capsys.readouterr().err
    assert f"no Ray cluster answers at {address} within 6 s" in error and error.count("rankrt: error") == 1


@pytest.mark.parametrize("address", ["", "nonsense", "10.0.0.1", "ray://head", "127.0.0.1:port"])
def test_what_is_not_an_address_is_refused_at_once(address: str):
    with pytest.raises(InputError, match="is not an address; expected auto, HOST:PORT or ray://HOST:PORT"):
        clusters.connected(address).__enter__()


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_port_where_nothing_listens_is_an_error_at_once(
    artifact: Artifact, tmp_path: Path, capsys: Output, address: str
):
    pytest.importorskip("ray", reason="ray is not installed")
    pairs, address = write(tmp_path / "pairs.parquet", 9), address.format(free_port())
    started = time.monotonic()
    assert run("score", artifact.folder, pairs, "--ray", address) == 1
    assert time.monotonic() - started < 20, "Ray alone would try for minutes"
    assert f"the Ray cluster at {address} cannot be used: no connection (Connection refused)" in capsys.readouterr().err


def test_an_address_of_a_web_page_gets_ray_s_own_reason(artifact: Artifact, tmp_path: Path, capsys: Output):
    pytest.importorskip("ray", reason="ray is not installed")
    pairs = write(tmp_path / "pairs.parquet", 9)
    assert run("score", artifact.folder, pairs, "--ray", "http://127.0.0.1:8265") == 1
    assert "the Ray cluster at http://127.0.0.1:8265 cannot be used: " in capsys.readouterr().err


def test_a_token_that_is_refused_is_told_by_what_to_do():
    """Ray names it in the cause of the cause; while it still tries, only in its log."""
    refused = RuntimeError("RPC error: InvalidAuthToken: Authentication token is missing or incorrect")
    error = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")
    error.__cause__ = refused
    assert reason_of(error) == NO_TOKEN
    said = clusters._no_answer("10.0.0.1:6379", str(refused).encode())
    assert said == f"the Ray cluster at 10.0.0.1:6379 cannot be used: {NO_TOKEN}"
    assert "set RAY_AUTH_MODE=token here" in clusters._no_answer("ray://10.0.0.1:10001", b"")


def test_a_cluster_with_another_ray_says_which_one_is_needed(cluster: Any):
    """The cluster's own check is run, as this process reports another release."""
    program = (
        "import sys, ray; ray.__version__ = '2.50.1'; sys.argv = ['probe', sys.argv[1]];"
        " from rankrt.cli.bulk import probe; probe.main()"
    )
    done = subprocess.run([sys.executable, "-c", program, cluster.address], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    version = pytest.importorskip("ray").__version__
    python = sys.version.split()[0]
    assert done.stdout.strip() == (
        f"it runs Ray {version} on Python {python}, and here are Ray 2.50.1 and Python {python}."
        f" Use Ray {version} and Python {python} here"
    )


def test_any_other_reason_is_ray_s_own():
    assert reason_of(RuntimeError("it\nis so")) == "it is so"
    assert reason_of(SystemExit()) == "SystemExit"


def test_without_ray_the_extra_is_named(
    artifact: Artifact, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.path", [path for path in sys.path if not (Path(path) / "ray").exists()])
    pairs = write(tmp_path / "pairs.parquet", 9)
    assert run("score", artifact.folder, pairs, "--ray", "auto") == 1
    assert "needs ray 2.50 or newer, which is not installed: pip install 'rankrt[ray]'" in capsys.readouterr().err


def test_a_node_that_cannot_import_what_it_needs_says_what_to_install(
    connected: Any, reranker: Reranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The actor's class comes from a module that is gone when the node looks for it."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "only_here.py").write_text(
        "from rankrt.cli.bulk.cluster import Scorer\n\n\nclass OnlyHere(Scorer):\n    pass\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(clusters, "Scorer", importlib.import_module("only_here").OnlyHere)
    shutil.rmtree(folder)
    with pytest.raises(
        RankrtError, match=r"a node of the cluster cannot import rankrt: .*pip install 'rankrt\[cpu\]=="
    ):
        list(clusters.score_on_cluster(reranker, 1, None, rows(CHUNKS[:2])))
