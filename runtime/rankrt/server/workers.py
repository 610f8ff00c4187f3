"""Who runs rows: a worker has models loaded and lanes to run them on; here the one that is this very process.

A lane is one thread's worth of a worker. Narrow runs go side by side, one a lane; a wide run has the worker to itself.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rankrt.arrays import Float32Array, Int32Array
from rankrt.artifact import Variant, open_artifact
from rankrt.backends import Backend
from rankrt.backends.ort_causal import OrtCausal
from rankrt.devices import Device
from rankrt.errors import RankrtError
from rankrt.planner import Capacity, Plan
from rankrt.tokenizer import Encoded
from rankrt.variants import open_variant


class WorkerLost(RankrtError):
    """The process that ran rows has ended without an answer; `life` says which of its lives that was."""

    def __init__(self, life: int) -> None:
        super().__init__("the process that scores has ended")
        self.life = life


class RunFailed(RankrtError):
    """The engine refused a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """What a worker needs to load a model; `key` is new for each load, so that an artifact can replace itself."""

    key: str
    folder: Path
    variant: Variant
    device: Device
    prepare: bool
    gpu_memory_bytes: int | None = None


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ServedModel:
    """A model that all workers have loaded. `salt` names its artifact and variant in the digests of rows."""

    key: str
    salt: bytes
    capacity: Capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Rows that run together.

    rows            token ids
    passage_starts  where in each row the passage begins
    is_wide         on all threads of the worker, instead of one
    """

    key: str
    rows: Sequence[Int32Array]
    passage_starts: Sequence[int]
    is_wide: bool


class Worker(Protocol):
    """Models, and lanes to run them on. Every lane has its own thread outside; the rest is one thread's at a time."""

    n_lanes: int

    def load(self, files: ModelFiles) -> Capacity:
        """Load a model. Raises ArtifactError or DeviceError."""
        ...

    def unload(self, key: str) -> None:
        """Release a model that nobody runs any more."""
        ...

    def run(self, lane: int, run: Run) -> Float32Array:
        """Return a logit for each row. Raises WorkerLost, or RunFailed."""
        ...

    def revive(self, life: int) -> None:
        """Make a worker usable again that was lost in that life, with all its models; once, whoever asks."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class LocalWorker:
    """A worker in this process."""

    def __init__(self, n_threads: int) -> None:
        self.n_lanes = n_threads
        self._backends: dict[str, Backend] = {}
        self._lock = threading.Lock()

    def load(self, files: ModelFiles) -> Capacity:
        """Load a model."""
        backend = open_variant(
            open_artifact(files.folder),
            files.variant,
            files.device,
            n_threads=self.n_lanes,
            prepare=files.prepare,
            gpu_memory_bytes=files.gpu_memory_bytes,
        )
        assert not isinstance(backend, OrtCausal), "models.check_servable lets no decoder through"
        with self._lock:
            self._backends[files.key] = backend
        return backend.capacity

    def unload(self, key: str) -> None:
        """Release a model."""
        with self._lock:
            backend = self._backends.pop(key)
        backend.close()

    def run(self, lane: int, run: Run) -> Float32Array:
        """Return a logit for each row."""
        encoded, rows = Encoded.of_rows(run.rows, run.passage_starts), np.arange(len(run.rows))
        plan = Plan(wide=(rows,)) if run.is_wide else Plan(narrow=(rows,))
        try:
            return self._backends[run.key].run(encoded, plan)
        except Exception as error:  # the engine's exceptions share no base of their own
            raise RunFailed(f"the engine failed on {len(run.rows)} rows: {error}") from error

    def revive(self, life: int) -> None:
        """Do nothing: this process is alive."""

    def close(self) -> None:
        """Release all models."""
        for key in list(self._backends):
            self.unload(key)
