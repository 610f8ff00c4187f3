"""Prefixes that runs have left for later ones: keys and values, within a limit of bytes. Knows no text and no graph."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, TypeAlias

import numpy as np

# Keys and values of a prefix, for each segment its part, in tensors that stay where ONNX Runtime made them.
Past: TypeAlias = tuple[Any, ...]


class KeptPrefixes:
    """The most recently used prefixes. Threads may share them."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._pasts: OrderedDict[Hashable, Past] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Past | None:
        """Return a prefix, if it is still here."""
        with self._lock:
            if (past := self._pasts.get(key)) is not None:
                self._pasts.move_to_end(key)
            return past

    def put(self, key: Hashable, past: Past) -> None:
        """Keep a prefix, and drop the least recently used ones beyond the limit. The newest stays, however large."""
        with self._lock:
            if key in self._pasts:
                return  # two runs began with it at once
            self._pasts[key] = past
            self._n_bytes += _n_bytes(past)
            while self._n_bytes > self._most_bytes and len(self._pasts) > 1:
                self._n_bytes -= _n_bytes(self._pasts.popitem(last=False)[1])

    def clear(self) -> None:
        """Drop all."""
        with self._lock:
            self._pasts.clear()
            self._n_bytes = 0


def _n_bytes(past: Past) -> int:
    return sum(int(np.prod(part.shape())) * np.dtype(np.float32).itemsize for part in past)
