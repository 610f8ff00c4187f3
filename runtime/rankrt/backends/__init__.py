"""Engines behind one small protocol, one file each; an engine is imported only when it is opened."""

from typing import Protocol

from rankrt.arrays import Float32Array
from rankrt.backends.planner import Capacity, Plan
from rankrt.text.pairs import Encoded


class Backend(Protocol):
    """A loaded model that turns rows into logits. Threads may share one."""

    @property
    def capacity(self) -> Capacity:
        """What the planner may count on."""
        ...

    def run(self, encoded: Encoded, plan: Plan) -> Float32Array:
        """Return a logit for each row, in the order of the rows, shape (n_rows,)."""
        ...

    def close(self) -> None:
        """Release threads and memory; the backend cannot run afterwards."""
        ...
