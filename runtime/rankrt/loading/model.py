"""A loaded model: its tokenizer, and its variants on one device, each loaded once, when it is first asked for."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from weakref import WeakSet

from rankrt.artifact.precisions import Precision
from rankrt.backends import Backend
from rankrt.calls import Calls
from rankrt.errors import ClosedError, DeviceError
from rankrt.loading.placement import Placement
from rankrt.options import LoadOptions
from rankrt.text.pairs import PairTokenizer

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a model came from and how it was loaded, so that another process can load the same one again."""

    source: str | Path
    options: LoadOptions

    def pinned(self, placement: Placement) -> "Origin":
        """Return how to load exactly the variant that these options chose here."""
        variant = placement.variant
        options = replace(
            self.options,
            device=str(placement.device),
            precision=variant.precision,
            instruction_set=variant.key.asked_set,
        )
        return replace(self, options=options)


class Model:
    """The variants of an artifact on one device. Threads may share it, and so may rerankers with different rules.

    A child that is forked has none of their threads, so it loads its own when it first needs them.
    """

    def __init__(
        self,
        placement: Placement,
        tokenizer: PairTokenizer,
        *,
        find: Callable[[Precision], Placement],
        load: Callable[[Placement], Backend],
        loaded: Backend | None = None,
        origin: Origin | None = None,
    ) -> None:
        """`find` places the variant in a precision, with its files there; `load` loads one.

        `loaded` is the variant of that placement, if it is loaded already. `origin` says how to open the same model
        again, where that is known.
        """
        self.placement = placement
        self.tokenizer = tokenizer
        self.find = find
        self.origin = origin
        self._load = load
        self._backends = {} if loaded is None else {placement.variant.name: loaded}
        # Of the process that this one was forked from: not used here, and not destroyed either.
        self._of_parent: list[dict[str, Backend]] = []
        self._is_closed = False
        self._begin()
        _all_models.add(self)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Keep loaded what is loaded, even if it is closed meanwhile. Raises ClosedError if it was closed before."""
        with self._lock:
            if self._is_closed:
                raise ClosedError("this reranker was closed, or one that shares its model; load it again")
            self._n_users += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_users -= 1
                self._release_if_closed()

    async def run(self, work: Callable[[], _T]) -> _T:
        """Do the work in a thread of this model, for an event loop. Raises ClosedError if the model was closed."""
        with self.use():
            return await self._calls.run(work)

    def backend(self, placement: Placement) -> Backend:
        """Return a loaded variant, to a caller that is in `use`; after a fork it is another than before."""
        name = placement.variant.name
        if (found := self._backends.get(name)) is not None:
            return found
        with self._loading:
            if name not in self._backends:
                if self._of_parent and placement.device.is_gpu:
                    raise DeviceError(
                        f"a forked process cannot use {placement.device}, which its parent used; load the reranker in"
                        ' the child, or start it with multiprocessing.get_context("spawn")'
                    )
                self._backends[name] = self._load(placement)
            return self._backends[name]

    def close(self) -> None:
        """Release all that were loaded: at once, or when the last call that uses them ends."""
        with self._lock:
            self._is_closed = True
            self._release_if_closed()

    def _begin(self) -> None:
        self._n_users = 0
        self._calls = Calls()
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def _release_if_closed(self) -> None:
        if self._is_closed and not self._n_users:
            self._calls.close()
            for name in list(self._backends):
                self._backends.pop(name).close()

    def _begin_in_child(self) -> None:
        """Begin again after a fork: what is loaded has no threads, and a lock may be held by one that is not here."""
        self._of_parent.append(self._backends)
        self._backends = {}
        self._begin()


_all_models: WeakSet[Model] = WeakSet()


def _begin_in_child() -> None:
    for model in _all_models:
        model._begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
