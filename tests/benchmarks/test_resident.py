"""What is resident is summed up by what it is."""

from pathlib import Path

import pytest

from benchmarks.studies.resident import table
from benchmarks.studies.resident_probe import by_part
from rankrt.host.memory import Mapping

FOUND = [
    Mapping(0, 256_000_000, "/cache/prepared/m3/weights.data", 120_000, 0),
    Mapping(0, 4_000_000, "/cache/prepared/m3/weights.data", 4_000, 0),
    Mapping(0, 100_000, "/lib/libc.so.6", 1_000, 20),
    Mapping(0, 90_000_000, "", 50_000, 50_000),
    Mapping(0, 100_000, "", 100, 100),
]


def test_the_parts_add_up_to_all():
    parts = by_part(FOUND, Path("/cache/prepared"))
    assert parts.pop("resident") == pytest.approx(sum(parts.values()))
    kilobytes = {"private": 50_100, "word table": 120_000, "other weights and vocabulary": 4_000, "libraries": 1_000}
    assert parts == {part: kb * 1024 / 1e6 for part, kb in kilobytes.items()}


def test_each_moment_is_a_column():
    lines = table({"loaded": {"resident": 400.4}, "later": {"resident": 430.0}}).markdown().splitlines()
    assert lines[0].split("|")[2:4] == [" loaded ", " later "]
    assert "400 MB" in lines[-1] and "430 MB" in lines[-1]
