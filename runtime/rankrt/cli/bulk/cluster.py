"""Chunks of pairs to logits on the nodes of a Ray cluster. Texts and logits travel; the nodes have the artifact.

This process reads, keeps the checkpoint and writes, so the nodes need no folder of files. A chunk whose actor dies is
scored by another, and a new actor takes the place of the dead one. Knows no file and no format.
"""

import platform
import re
import subprocess
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from rankrt import __version__
from rankrt.arrays import BoolArray, Float32Array
from rankrt.cli.bulk import probe
from rankrt.cli.bulk.chunks import Chunk, Scored
from rankrt.cli.scoring import placed
from rankrt.errors import DeviceError, InputError, RankrtError, ScoreError
from rankrt.host.child import child_command
from rankrt.integrations.frameworks import framework
from rankrt.reranker import Recipe, Reranker
from rankrt.text.pairs import Pair

# Ray itself tries to connect for 200 s, and then ends the process.
_CONNECT_S = 30
# How long none of the actors may have started: a large model comes over a network in minutes.
_START_S = 300
# How many chunks an actor has in hand, so that it need not wait for the next one.
_IN_HAND = 2
# So many chunks an actor may wait to be written in order, while one of them takes longer than the others.
_AHEAD = 8
# A chunk of which so many actors died is the likely cause; so is the model, if so many die while they load it.
_MOST_DEATHS = 3


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to a cluster.

    Raises InputError for what is not an address, and RankrtError, within half a minute, if the cluster does not answer
    or has another Ray.
    """
    if not re.fullmatch(r"auto|local|[^:/]+:\d{1,5}|\[[^\]]+\]:\d{1,5}|ray://.+:\d{1,5}|(?!ray:)\w+://.+", address):
        raise InputError(f"--ray {address!r} is not an address; expected auto, HOST:PORT or ray://HOST:PORT")
    with framework("ray", least="2.50", extra="ray"):
        import ray
    try:
        tried = subprocess.run(
            child_command(probe.__name__, address), capture_output=True, text=True, timeout=_CONNECT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RankrtError(_no_answer(address, error.stderr or b"")) from error
    if tried.returncode:
        said = tried.stdout.strip() or (tried.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise RankrtError(f"the Ray cluster at {address} cannot be used: {said}")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError) as error:
        raise RankrtError(f"the Ray cluster at {address} cannot be used: {probe.reason_of(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _no_answer(address: str, logged: bytes) -> str:
    """Return why a cluster that takes connections has not let this process in, as far as one can know."""
    if probe.REFUSED_TOKEN.encode() in logged:
        return f"the Ray cluster at {address} cannot be used: {probe.NO_TOKEN}"
    if address.startswith("ray://"):
        advice = "If the cluster asks for a token, set RAY_AUTH_MODE=token here: with ray:// Ray does not do so itself"
    else:
        advice = f"`ray status --address {address}` tells whether one runs there; a firewall may be in between"
    return f"no Ray cluster answers at {address} within {_CONNECT_S} s. {advice}"


def score_on_cluster(
    reranker: Reranker, n_actors: int | None, n_threads: int | None, chunks: Iterable[Chunk]
) -> Iterator[Scored]:
    """Yield chunks with their logits in order, scored by actors that each load the reranker's model.

    n_actors   by default one for each node or GPU, or as many as `n_threads` leave room for
    n_threads  CPUs of an actor, and its threads; by default a node's, or the node's share of `n_actors`

    Raises RankrtError if a node lacks the artifact or rankrt, if no actor starts, or if the connection is lost.
    """
    try:
        yield from _scored_in_order(_Actors(reranker, _rooms(reranker, n_actors, n_threads)), chunks)
    except ConnectionError as error:  # by Ray's client: of HOST:PORT Ray itself ends the process
        raise RankrtError(
            f"the connection to the Ray cluster was lost: {_last_line(error)}. The scores in a checkpoint are kept, and"
            " the same command continues"
        ) from error


def _scored_in_order(actors: "_Actors", chunks: Iterable[Chunk]) -> Iterator[Scored]:
    """Yield chunks with their logits in order; the actors end with the last one, or with an error."""
    waiting: deque[_Work] = deque()
    most = _AHEAD * len(actors)
    try:
        for chunk in chunks:
            work = _Work(chunk=chunk)
            waiting.append(work)
            actors.take(work)
            while waiting[0].found is not None or len(waiting) >= most:
                yield _next(actors, waiting)
                if not waiting:
                    break
        while waiting:
            yield _next(actors, waiting)
    finally:
        actors.end()


@dataclass(eq=False, slots=True, kw_only=True)
class _Work:
    """A chunk on its way; `n_deaths` actors died of it, or while they had it in hand."""

    chunk: Chunk
    found: tuple[Float32Array, BoolArray] | None = None
    n_deaths: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """What one actor takes of a cluster: CPUs, GPUs, and the node where it is put while that lives."""

    n_cpus: int
    n_gpus: int = 0
    node: str | None = None


class Scorer:
    """An actor: a process of a node, with a loaded model."""

    def __init__(self, recipe: Recipe, n_threads: int | None) -> None:
        self._recipe = recipe
        self._n_threads = n_threads

    def load(self) -> str | RankrtError:
        """Load the model. Returns the version of rankrt, or what went wrong."""
        try:
            self._reranker = self._recipe.load(n_threads=self._n_threads)
        except DeviceError as error:
            return DeviceError(f"on the host {platform.node()}: {error}")
        except RankrtError as error:
            return error
        return __version__

    def score(self, pairs: Sequence[Pair]) -> tuple[Float32Array, BoolArray] | RankrtError:
        """Return the logits of pairs and whether passages were truncated, or what went wrong."""
        try:
            found = self._reranker.evaluate(pairs)
        except RankrtError as error:
            return error
        return found.logits, found.truncated


@dataclass(eq=False, slots=True, kw_only=True)
class _Actor:
    """An actor as this process sees it: a handle, its room, and the chunks that it has in hand."""

    handle: Any
    room: _Room
    in_hand: list[_Work] = field(default_factory=list)
    is_dead: bool = False

    def has_room_for(self, work: _Work) -> bool:
        """Tell whether it may have work in hand, too. A chunk that an actor died of is scored alone, to find which."""
        is_suspect = any(one.n_deaths for one in (work, *self.in_hand))
        return len(self.in_hand) < (1 if is_suspect else _IN_HAND)


@dataclass(eq=False, slots=True)
class _Actors:
    """Actors that load, those that score, and the work that none of them has in hand."""

    reranker: Reranker
    rooms: Sequence[_Room]
    _loading: dict[Any, _Actor] = field(default_factory=dict)
    _scoring: dict[Any, tuple[_Actor, _Work]] = field(default_factory=dict)
    _ready: list[_Actor] = field(default_factory=list)
    _undone: deque[_Work] = field(default_factory=deque)
    _n_failed_starts: int = 0

    def __post_init__(self) -> None:
        for room in self.rooms:
            self._start(room)

    def __len__(self) -> int:
        return len(self.rooms)

    def take(self, work: _Work) -> None:
        """Give work to the actor that has least in hand, or keep it until one has room."""
        self._undone.append(work)
        self._hand_out()

    def wait(self) -> None:
        """Wait until something has happened: a chunk was scored, an actor is ready, or one has died."""
        import ray

        refs = [*self._scoring, *self._loading]
        # A chunk may take any time. An actor that cannot start has a limit, while there is no other.
        done, _ = ray.wait(refs, timeout=None if self._scoring else _START_S)
        if not done:
            raise RankrtError(
                f"no actor has started for {_START_S} s, of {len(self)} that were asked for. Each needs"
                f" {_told(self.rooms[0])}, and the cluster has free: {_free()}. Ask for fewer with --processes, or for"
                " smaller ones with --threads"
            )
        for ref in done:
            if ref in self._loading:
                self._loaded(self._loading.pop(ref), ref)
            else:
                self._scored(*self._scoring.pop(ref), ref)
        self._hand_out()

    def end(self) -> None:
        """End all actors."""
        import ray

        for actor in [*self._ready, *self._loading.values()]:
            ray.kill(actor.handle)

    def _start(self, room: _Room) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        is_cpu = not self.reranker.device.is_gpu
        options: dict[str, Any] = {"num_cpus": room.n_cpus, "num_gpus": room.n_gpus, "max_restarts": 0}
        options["scheduling_strategy"] = (
            "SPREAD" if room.node is None else NodeAffinitySchedulingStrategy(room.node, soft=True)
        )
        recipe = _recipe(self.reranker)
        handle = ray.remote(Scorer).options(**options).remote(recipe, room.n_cpus if is_cpu else None)
        self._loading[handle.load.remote()] = _Actor(handle=handle, room=room)

    def _hand_out(self) -> None:
        while self._undone:
            free = [actor for actor in self._ready if actor.has_room_for(self._undone[0])]
            if not free:
                return
            actor, work = min(free, key=lambda actor: len(actor.in_hand)), self._undone.popleft()
            actor.in_hand.append(work)
            self._scoring[actor.handle.score.remote(work.chunk.pairs)] = (actor, work)

    def _loaded(self, actor: _Actor, ref: Any) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            said = ray.get(ref)
        except RayError as error:
            self._n_failed_starts += 1
            if "ModuleNotFoundError" in str(error) or "ImportError" in str(error):
                raise RankrtError(
                    f"a node of the cluster cannot import rankrt: {_last_line(error)}. Install there what is installed"
                    f" here: pip install 'rankrt[cpu]=={__version__}'"
                ) from error
            if self._n_failed_starts >= _MOST_DEATHS:
                raise RankrtError(
                    f"{self._n_failed_starts} actors died while they loaded the model, most likely for lack of memory:"
                    f" {_last_line(error)}"
                ) from error
            self._start(actor.room)
            return
        if isinstance(said, RankrtError):
            raise said
        if said != __version__:
            raise RankrtError(f"a node of the cluster has rankrt {said}, and this host {__version__}; install the same")
        self._n_failed_starts = 0
        self._ready.append(actor)

    def _scored(self, actor: _Actor, work: _Work, ref: Any) -> None:
        import ray
        from ray.exceptions import RayError

        actor.in_hand.remove(work)
        try:
            found = ray.get(ref)
        except RayError as error:
            work.n_deaths += 1
            if work.n_deaths >= _MOST_DEATHS:
                raise RankrtError(
                    f"{work.n_deaths} actors died while they scored the pairs from {work.chunk.place(0)} to"
                    f" {work.chunk.place(len(work.chunk) - 1)}, most likely for lack of memory: {_last_line(error)}."
                    " The scores in a checkpoint are kept"
                ) from error
            self._undone.appendleft(work)
            if not actor.is_dead:
                actor.is_dead = True
                self._ready.remove(actor)
                self._start(actor.room)
            return
        if isinstance(found, RankrtError):
            if isinstance(found, InputError | ScoreError):
                places = [work.chunk.place(number) for number in range(len(work.chunk))]
                raise type(found)(placed(found, places)) from found
            raise found
        work.found = found


def _next(actors: _Actors, waiting: deque[_Work]) -> Scored:
    """Return the first chunk that waits, when it is scored."""
    while waiting[0].found is None:
        actors.wait()
    work = waiting.popleft()
    assert work.found is not None, "it was waited for"
    logits, truncated = work.found
    return Scored(chunk=work.chunk, logits=logits, truncated=truncated)


def _rooms(reranker: Reranker, n_actors: int | None, n_threads: int | None) -> list[_Room]:
    """Return what each actor takes of the cluster.

    Raises InputError for more threads than a node has CPUs, for threads of a GPU, and for a cluster without its kind.
    """
    import ray

    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    if reranker.device.is_gpu:
        if n_threads is not None:
            raise InputError(f"n_threads={n_threads} is for the CPU, not for {reranker.device}; leave it out")
        n_gpus = int(sum(has.get("GPU", 0) for has in nodes.values()))
        if not n_gpus:
            raise InputError(f"{reranker.variant.name} needs GPUs, and the Ray cluster has none; use --device cpu")
        return [_Room(n_cpus=1, n_gpus=1)] * (n_actors or n_gpus)
    cpus = {node: int(has["CPU"]) for node, has in nodes.items() if has.get("CPU", 0) >= 1}
    if not cpus:
        raise InputError("the Ray cluster has no node with a CPU; start its nodes with --num-cpus")
    if n_threads is not None and n_threads > max(cpus.values()):
        raise InputError(
            f"n_threads={n_threads}, but the largest node of the Ray cluster has {max(cpus.values())} of Ray's CPUs"
        )
    if n_actors is None and n_threads is None:
        return [_Room(n_cpus=n, node=node) for node, n in cpus.items()]
    if n_threads is None:
        assert n_actors is not None, "one of them was given"
        a_node = -(-n_actors // len(cpus))
        n_threads = max(1, min(cpus.values()) // a_node)
    return [_Room(n_cpus=n_threads)] * (n_actors or sum(n // n_threads for n in cpus.values()))


def _recipe(reranker: Reranker) -> Recipe:
    """Return how an actor loads the model. Ray shows it its GPU as the first one, whatever the number here."""
    recipe = reranker.recipe()
    if not reranker.device.is_gpu:
        return recipe
    options = replace(recipe.origin.options, device=reranker.device.target)
    return replace(recipe, origin=replace(recipe.origin, options=options))


def _told(room: _Room) -> str:
    return f"{room.n_cpus} CPU{'s' * (room.n_cpus > 1)}" + (f" and {room.n_gpus} GPU" if room.n_gpus else "")


def _free() -> str:
    import ray

    free = ray.available_resources()
    return ", ".join(f"{free.get(name, 0):.0f} {name}" for name in ("CPU", "GPU"))


def _last_line(error: Exception) -> str:
    return next(reversed(str(error).strip().splitlines()), type(error).__name__).strip().rstrip(".")
