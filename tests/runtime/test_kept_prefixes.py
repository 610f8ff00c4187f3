"""Prefixes that a decoder's runs leave for later ones, within a limit of bytes."""

from typing import Any

import numpy as np
import pytest

from rankrt.backends.kept_prefixes import KeptPrefixes

onnxruntime: Any = pytest.importorskip("onnxruntime", reason="needs an engine")


def past(n_floats: int) -> tuple[Any, ...]:
    """A prefix in two segments."""
    return tuple(onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(n_floats // 2, np.float32)) for _ in range(2))


def test_the_least_recently_used_go_when_there_are_too_many_bytes():
    kept = KeptPrefixes(most_bytes=4 * 20)
    pasts = {name: past(10) for name in "abc"}
    kept.put("a", pasts["a"])
    kept.put("b", pasts["b"])
    assert kept.get("a") is pasts["a"]
    kept.put("c", pasts["c"])
    assert [kept.get(name) for name in "abc"] == [pasts["a"], None, pasts["c"]]


def test_the_newest_stays_however_large():
    kept, large = KeptPrefixes(most_bytes=4 * 20), past(100)
    kept.put("small", past(10))
    kept.put("large", large)
    assert (kept.get("small"), kept.get("large")) == (None, large)
    kept.put("small", past(10))
    assert kept.get("large") is None


def test_one_that_two_runs_computed_counts_once():
    kept, first = KeptPrefixes(most_bytes=4 * 20), past(10)
    kept.put("a", first)
    kept.put("a", past(10))
    kept.put("b", past(10))
    assert kept.get("a") is first


def test_all_go_at_once():
    kept = KeptPrefixes(most_bytes=4 * 20)
    kept.put("a", past(20))
    kept.clear()
    assert kept.get("a") is None
    kept.put("a", past(10))
    kept.put("b", past(10))
    assert kept.get("a") is not None, "what went does not count any more"
