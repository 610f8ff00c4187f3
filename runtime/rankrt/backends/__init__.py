"""Ways to run a model, one file each, and the protocol that all of them keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rankrt.arrays import Float32Array
from rankrt.backends.planner import Capacity
from rankrt.llm.exits import Keep
from rankrt.text.pairs import Encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Logits:
    """The logits of rows, and what they took.

    values          (n_exits, n_rows); NaN at an exit that a row did not reach
    n_saved_tokens  the tokens that were not computed, because rows begin alike
    """

    values: Float32Array
    n_saved_tokens: int = 0

    @property
    def last(self) -> Float32Array:
        """The logits at the last exit, (n_rows,)."""
        values: Float32Array = self.values[-1]
        return values


class Backend(Protocol):
    """A loaded model that turns rows into logits. Threads may share one.

    `exits` are layers where logits are read, in ascending order; without any they are read at the end of the model.
    """

    @property
    def capacity(self) -> Capacity:
        """What the planner may count on."""
        ...

    def logits(self, encoded: Encoded, exits: Sequence[int] = (), keep: Keep | None = None) -> Logits:
        """Divide rows into runs and return their logits.

        With `keep`, only the rows that it names run to the next exit. A model with one exit never asks it.
        """
        ...

    def run(self, encoded: Encoded, exits: Sequence[int] = (), *, is_wide: bool) -> Logits:
        """Return the logits of rows that the caller has planned to run together: on all threads, or on one."""
        ...

    def close(self) -> None:
        """Release threads and memory; the backend cannot run afterwards."""
        ...
