"""Prefixes that runs have left for later ones: keys and values, within a limit of bytes. Knows no text and no graph."""

import threading
from collections import OrderedDict
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from rankrt.arrays import Int32Array
from rankrt.llm.prefixes import n_alike

# Keys and values of a prefix, for each segment its part, in tensors that stay where ONNX Runtime made them.
Past: TypeAlias = tuple[Any, ...]
# A prefix is compared with the last ones that were used: 2 us each, and any that has the same instruction will do.
_N_COMPARED = 32


class KeptPrefixes:
    """The most recently used prefixes. Threads may share them."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._pasts: OrderedDict[tuple[int, bytes], tuple[Int32Array, Past]] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def get(self, ids: Int32Array, layer: int) -> Past | None:
        """Return a prefix up to a layer, if it is still here."""
        key = layer, ids.tobytes()
        with self._lock:
            if key not in self._pasts:
                return None
            self._pasts.move_to_end(key)
            return self._pasts[key][1]

    def most_alike(self, ids: Int32Array, layer: int) -> tuple[int, Past]:
        """Return the prefix with the most of the first tokens, and how many these are: 0 and no tensors without one."""
        with self._lock:
            recent = list(islice(reversed(self._pasts.items()), _N_COMPARED))
        known = [(n_alike(ids, others), past) for (its_layer, _), (others, past) in recent if its_layer == layer]
        return max(known, key=lambda found: found[0], default=(0, ()))

    def put(self, ids: Int32Array, layer: int, past: Past) -> None:
        """Keep a prefix, and drop the least recently used ones beyond the limit. The newest stays, however large."""
        key = layer, ids.tobytes()
        with self._lock:
            if key in self._pasts:
                return  # two runs began with it at once
            self._pasts[key] = ids, past
            self._n_bytes += _n_bytes(past)
            while self._n_bytes > self._most_bytes and len(self._pasts) > 1:
                _, (_, dropped) = self._pasts.popitem(last=False)
                self._n_bytes -= _n_bytes(dropped)

    def clear(self) -> None:
        """Drop all."""
        with self._lock:
            self._pasts.clear()
            self._n_bytes = 0


def _n_bytes(past: Past) -> int:
    return sum(int(np.prod(part.shape())) * np.dtype(np.float32).itemsize for part in past)
