"""What the study of Ray and Spark derives from its figures."""

import pytest

pytest.importorskip("jinja2", reason="reports need the extra evaluate")
from benchmarks.studies.ray_and_spark import hundred_nodes

# The driver feeds 50,000 long rows a second: 256 of them in 5.12 ms.
DRIVER = {"pairs_a_chunk": 256, "driver_cpu_ms_a_chunk": {"3 to 20": 2.0, "250 to 350": 5.12}}


def test_a_hundred_nodes_are_limited_by_the_overhead_and_by_what_the_driver_can_feed():
    speed = {**DRIVER, "overhead_of_an_actor_ms_a_chunk": 64.0}
    rows = {row[0]: row[1:] for row in hundred_nodes(speed).rows}
    assert rows["100"] == ["97.6", "9,756", "98"]  # 256 rows take 2.56 s, and 0.064 s more
    assert rows["1,000"] == ["800.0", "50,000", "50"]


def test_an_overhead_below_the_noise_counts_as_none():
    speed = {**DRIVER, "overhead_of_an_actor_ms_a_chunk": -1.0}
    assert hundred_nodes(speed).rows[0] == ["10", "10.0", "1,000", "100"]
