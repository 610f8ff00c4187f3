"""Who runs rows: a worker has models loaded and lanes to run them on; here the one that is this very process.

A lane is one thread's worth of a worker. Narrow runs go side by side, one a lane; a wide run has the worker to itself.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rankrt.arrays import Float32Array, Int32Array
from rankrt.artifact.manifest import Artifact, Variant, open_artifact
from rankrt.backends import Backend
from rankrt.backends.planner import Capacity
from rankrt.errors import ArtifactError, RankrtError
from rankrt.host.device import Device
from rankrt.host.host import this_host
from rankrt.loading.choose import place_variant
from rankrt.loading.open import open_backend, open_kept
from rankrt.options import LoadOptions
from rankrt.text.pairs import Encoded


class WorkerLost(RankrtError):
    """The process that scores gave no answer; the message says how it ended."""


class RunFailed(RankrtError):
    """A run ended with an error."""


class ArtifactReplaced(ArtifactError):
    """Another artifact is in the folder of one that a worker had loaded and has to load again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """What a worker needs to load a model, now and again; `key` is new for each that the server loads.

    `artifact` is what the server read: a worker never loads another one by its key. `variant` and `device` are what
    the server chose by the options.
    """

    key: str
    artifact: Artifact
    variant: Variant
    device: Device
    options: LoadOptions


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ServedModel:
    """A model that all workers have loaded. `salt` names its artifact and variant in the digests of rows.

    `exits` is where its score is read, as for a `Backend`.
    """

    key: str
    salt: bytes
    capacity: Capacity
    exits: tuple[int, ...] = ()

    @property
    def shares_prefixes(self) -> bool:
        """Whether a beginning that rows have in common is computed once, and kept in the worker for later runs."""
        return self.capacity.layout == "causal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Rows that run together.

    rows            token ids
    passage_starts  where in each row the passage begins
    exits           where the score is read, as for a `Backend`
    is_wide         on all threads of the worker, instead of one
    """

    key: str
    rows: Sequence[Int32Array]
    passage_starts: Sequence[int]
    exits: Sequence[int] = ()
    is_wide: bool


class Worker(Protocol):
    """Models, and lanes to run them on. Every lane has its own thread outside.

    A worker may be away, and comes back by itself with all its models: `outage` says why it cannot score now, and is
    None while it can.
    """

    n_lanes: int

    @property
    def outage(self) -> RankrtError | None:
        """Why it cannot score now."""
        ...

    def watch(self, on_change: Callable[[], None]) -> None:
        """Call this, in any thread, after each change of `outage`, and after each attempt to come back that failed."""
        ...

    def load(self, files: ModelFiles) -> Capacity:
        """Load a model. Raises ArtifactError, DeviceError or WorkerLost."""
        ...

    def unload(self, key: str) -> None:
        """Release a model that no request uses any more, if it is there."""
        ...

    def can_run(self, key: str) -> bool:
        """Tell whether that model is loaded and can be run now."""
        ...

    def run(self, lane: int, run: Run) -> Float32Array:
        """Return a logit for each row. Raises WorkerLost, or RunFailed."""
        ...

    def hurry(self) -> None:
        """Try to come back at once, if it is away and waits for the next attempt."""
        ...

    def close(self) -> None:
        """Release everything; a run in flight is lost."""
        ...


class LocalWorker:
    """A worker in this process. It is never away: what ends it ends the server."""

    outage = None

    def __init__(self, n_threads: int) -> None:
        self.n_lanes = n_threads
        self._backends: dict[str, Backend] = {}
        self._n_suffix: dict[str, int] = {}
        self._lock = threading.Lock()

    def watch(self, on_change: Callable[[], None]) -> None:
        """Do nothing: there is no change."""

    def load(self, files: ModelFiles) -> Capacity:
        """Load a model."""
        backend = _open(files, self.n_lanes)
        with self._lock:
            self._backends[files.key] = backend
            self._n_suffix[files.key] = len(files.artifact.manifest.template.suffix)
        return backend.capacity

    def unload(self, key: str) -> None:
        """Release a model."""
        with self._lock:
            backend = self._backends.pop(key, None)
            self._n_suffix.pop(key, None)
        if backend is not None:
            backend.close()

    def can_run(self, key: str) -> bool:
        """Tell whether that model is loaded."""
        return key in self._backends

    def run(self, lane: int, run: Run) -> Float32Array:
        """Return a logit for each row."""
        try:
            encoded = Encoded.of_rows(run.rows, run.passage_starts, self._n_suffix[run.key])
            return self._backends[run.key].run(encoded, run.exits, is_wide=run.is_wide).last
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise RunFailed(f"a run of {len(run.rows)} rows failed: {error}") from error

    def hurry(self) -> None:
        """Do nothing: this process is here."""

    def close(self) -> None:
        """Release all models."""
        for key in list(self._backends):
            self.unload(key)


def _open(files: ModelFiles, n_threads: int) -> Backend:
    """Load a model from its folder, or from the prepared models if the folder has changed or cannot be read."""
    artifact, options = files.artifact, files.options
    placement = place_variant(artifact, files.variant, files.device, this_host())
    try:
        if open_artifact(artifact.folder).identity != artifact.identity:
            raise ArtifactReplaced(f"{artifact.folder} holds another artifact than the one that was loaded from it")
    except (ArtifactError, OSError):
        if options.prepare and (kept := open_kept(placement, n_threads)) is not None:
            return kept
        raise
    return open_backend(placement, options, n_threads)
