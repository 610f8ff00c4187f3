"""Prefixes that a decoder's runs leave for later ones, within a limit of bytes."""

from typing import Any

import numpy as np
import pytest

from rankrt.arrays import Int32Array
from rankrt.backends.kept_prefixes import KeptPrefixes

onnxruntime: Any = pytest.importorskip("onnxruntime", reason="needs an engine")

A, B, C = (np.array([i, i, i], np.int32) for i in (1, 2, 3))
NOTHING: tuple[int, Any] = (0, ())


def past(n_floats: int) -> tuple[Any, ...]:
    """A prefix in two segments."""
    return tuple(onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(n_floats // 2, np.float32)) for _ in range(2))


def ids(text: str) -> Int32Array:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def test_the_least_recently_used_go_when_there_are_too_many_bytes():
    kept = KeptPrefixes(most_bytes=4 * 20)
    pasts = {name: past(10) for name in "abc"}
    kept.put(A, 3, pasts["a"])
    kept.put(B, 3, pasts["b"])
    assert kept.get(A, 3) is pasts["a"]
    kept.put(C, 3, pasts["c"])
    assert [kept.get(name, 3) for name in (A, B, C)] == [pasts["a"], None, pasts["c"]]


def test_the_newest_stays_however_large():
    kept, large = KeptPrefixes(most_bytes=4 * 20), past(100)
    kept.put(A, 3, past(10))
    kept.put(B, 3, large)
    assert (kept.get(A, 3), kept.get(B, 3)) == (None, large)
    kept.put(A, 3, past(10))
    assert kept.get(B, 3) is None


def test_one_that_two_runs_computed_counts_once():
    kept, first = KeptPrefixes(most_bytes=4 * 20), past(10)
    kept.put(A, 3, first)
    kept.put(A, 3, past(10))
    kept.put(B, 3, past(10))
    assert kept.get(A, 3) is first


def test_of_several_that_begin_alike_the_one_with_the_most_tokens_is_found():
    kept, pasts = KeptPrefixes(most_bytes=4000), {name: past(10) for name in ("do: who", "do: what", "say: who")}
    for name, its_past in pasts.items():
        kept.put(ids(name), 3, its_past)
    assert kept.most_alike(ids("do: where"), 3) == (6, pasts["do: what"])
    assert kept.most_alike(ids("do: whoever"), 3) == (7, pasts["do: who"])
    assert kept.most_alike(ids("do: wh"), 3)[0] == 6
    assert kept.most_alike(ids("find: who"), 3)[0] == 0


def test_a_prefix_is_known_up_to_its_own_layer_only():
    kept, shallow = KeptPrefixes(most_bytes=4000), past(10)
    kept.put(A, 3, shallow)
    assert (kept.get(A, 6), kept.most_alike(A, 6)) == (None, NOTHING)
    assert (kept.get(A, 3), kept.most_alike(A, 3)) == (shallow, (3, shallow))


def test_all_go_at_once():
    kept = KeptPrefixes(most_bytes=4 * 20)
    kept.put(A, 3, past(20))
    kept.clear()
    assert (kept.get(A, 3), kept.most_alike(A, 3)) == (None, NOTHING)
    kept.put(A, 3, past(10))
    kept.put(B, 3, past(10))
    assert kept.get(A, 3) is not None, "what went does not count any more"
