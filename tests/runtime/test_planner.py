"""Plans: every row once, padding and memory bounded, and no later than the simpler plans."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankrt.arrays import Int64Array
from rankrt.artifact.manifest import Layout
from rankrt.backends.planner import (
    GPU_RUN_TOKENS,
    LONGEST_NARROW_ROW,
    RUN_TOKENS,
    Capacity,
    divide,
    makespan,
    n_wide_runs,
    plan,
    spread_width,
)

lengths_of_rows = st.lists(st.integers(4, 8192), max_size=60).map(lambda lengths: np.array(lengths, np.int64))
capacities = st.builds(
    lambda layout, n_threads, has_narrow: Capacity(
        layout=layout, n_threads=n_threads, n_narrow=n_threads if has_narrow else 0
    ),
    st.sampled_from(["packed", "stacked", "spread"]),
    st.integers(1, 64),
    st.booleans(),
)
gpus = st.builds(
    lambda layout, n_in_flight: Capacity(layout=layout, n_threads=1, n_narrow=n_in_flight),
    st.sampled_from(["varlen", "padded"]),
    st.integers(1, 3),
)


@given(lengths=lengths_of_rows, n_threads=st.integers(1, 64))
def test_rows_that_attend_in_one_matrix_want_the_same_width(lengths: Int64Array, n_threads: int):
    runs = plan(lengths, Capacity(layout="spread", n_threads=n_threads, n_narrow=0)).runs
    assert all(len({spread_width(int(length)) for length in lengths[run]}) == 1 for run in runs)


@given(lengths=lengths_of_rows, capacity=capacities | gpus)
def test_every_row_is_in_exactly_one_run(lengths: Int64Array, capacity: Capacity):
    rows = [int(row) for run in plan(lengths, capacity).runs for row in run]
    assert sorted(rows) == list(range(len(lengths)))


@given(lengths=lengths_of_rows, capacity=capacities)
def test_a_run_of_several_rows_stays_within_the_budget(lengths: Int64Array, capacity: Capacity):
    most = RUN_TOKENS if capacity.n_narrow else RUN_TOKENS * capacity.n_threads
    assert all(len(run) == 1 or lengths[run].sum() <= most for run in plan(lengths, capacity).runs)


@given(lengths=lengths_of_rows, capacity=capacities)
def test_stacked_runs_never_mix_lengths(lengths: Int64Array, capacity: Capacity):
    if capacity.layout == "stacked":
        assert all(len(set(lengths[run].tolist())) == 1 for run in plan(lengths, capacity).runs)


@given(lengths=lengths_of_rows, capacity=capacities)
def test_the_longest_rows_run_alone_on_all_threads(lengths: Int64Array, capacity: Capacity):
    assert all(lengths[run].max() <= LONGEST_NARROW_ROW for run in plan(lengths, capacity).narrow)


@given(lengths=lengths_of_rows, capacity=capacities | gpus)
def test_runs_go_from_long_rows_to_short_ones(lengths: Int64Array, capacity: Capacity):
    first = [int(lengths[run[0]]) for run in plan(lengths, capacity).runs]
    assert first == sorted(first, reverse=True)


@given(lengths=lengths_of_rows)
def test_without_narrow_runs_everything_is_wide(lengths: Int64Array):
    assert plan(lengths, Capacity(layout="packed", n_threads=4, n_narrow=0)).narrow == ()


def test_one_row_uses_all_threads():
    found = plan(np.array([300]), Capacity(layout="packed", n_threads=8, n_narrow=8))
    assert [run.tolist() for run in found.wide] == [[0]]


@pytest.mark.parametrize("lengths", [[60, 30], [120, 30, 30]])
def test_short_rows_that_go_wide_share_a_run(lengths: list[int]):
    found = plan(np.array(lengths), Capacity(layout="packed", n_threads=2, n_narrow=2))
    assert ([len(run) for run in found.wide], found.narrow) == ([len(lengths)], ())


def test_wide_runs_of_different_groups_stay_apart():
    found = plan(np.array([60, 30]), Capacity(layout="packed", n_threads=2, n_narrow=2), groups=np.array([0, 1]))
    assert [run.tolist() for run in found.wide] == [[0], [1]]


def test_an_even_number_of_rows_is_shared_out_and_an_odd_one_goes_wide_first():
    capacity = Capacity(layout="packed", n_threads=2, n_narrow=2)
    assert len(plan(np.array([200] * 4), capacity).wide) == 0
    odd = plan(np.array([200] * 5), capacity)
    assert (len(odd.wide), len(odd.narrow)) == (1, 4)


def test_one_thread_is_never_wide():
    assert plan(np.array([200] * 5), Capacity(layout="packed", n_threads=1, n_narrow=1)).wide == ()


def test_short_rows_share_runs_but_every_lane_gets_one():
    capacity = Capacity(layout="packed", n_threads=2, n_narrow=2)
    assert [len(run) for run in plan(np.array([16] * 64), capacity).runs] == [16] * 4
    assert [len(run) for run in plan(np.array([16] * 4), capacity).runs] == [2, 2]


def test_packing_fills_up_to_the_budget_and_gives_a_long_row_a_run_of_its_own():
    runs = divide(np.array([10, 300, 20, 30]), 50, "packed")
    assert [run.tolist() for run in runs] == [[1], [3, 2], [0]]


def test_stacking_keeps_lengths_apart():
    runs = divide(np.array([10, 20, 10, 10, 300]), 20, "stacked")
    assert [run.tolist() for run in runs] == [[4], [1], [0, 2], [3]]


@given(
    run_tokens=st.lists(st.integers(4, 512), min_size=1, max_size=40).map(lambda tokens: sorted(tokens, reverse=True)),
    n_threads=st.integers(2, 16),
)
def test_choosing_wide_runs_never_takes_longer_than_all_narrow(run_tokens: list[int], n_threads: int):
    capacity = Capacity(layout="packed", n_threads=n_threads, n_narrow=n_threads)
    n_wide = n_wide_runs(run_tokens, capacity)
    costs = [n + 5 for n in run_tokens]
    chosen = sum(costs[:n_wide]) / (n_threads * 0.95) + makespan(costs[n_wide:], n_threads)
    assert chosen <= makespan(costs, n_threads) + 1e-9


@pytest.mark.parametrize(("costs", "n_lanes", "expected"), [([], 2, 0), ([5, 4, 3], 2, 7), ([5, 4, 3, 3], 2, 8)])
def test_makespan_by_hand(costs: list[float], n_lanes: int, expected: float):
    assert makespan(costs, n_lanes) == expected


@given(lengths=lengths_of_rows, capacity=gpus)
def test_a_gpu_has_no_wide_runs(lengths: Int64Array, capacity: Capacity):
    assert plan(lengths, capacity).wide == ()


@given(lengths=lengths_of_rows)
def test_a_flat_run_is_bounded_in_tokens_and_in_the_places_of_its_rows(lengths: Int64Array):
    for run in plan(lengths, Capacity(layout="varlen", n_threads=1, n_narrow=2)).runs:
        assert len(run) == 1 or lengths[run].sum() <= GPU_RUN_TOKENS
        assert len(run) == 1 or len(run) * lengths[run].max() <= 4 * GPU_RUN_TOKENS


@given(lengths=lengths_of_rows)
def test_a_padded_run_is_bounded_with_what_it_fills_up(lengths: Int64Array):
    for run in plan(lengths, Capacity(layout="padded", n_threads=1, n_narrow=2)).runs:
        n_places = len(run) * int(lengths[run].max())
        assert len(run) == 1 or n_places <= GPU_RUN_TOKENS
        assert n_places - lengths[run].sum() <= max(512, n_places // 8)


def test_a_short_request_is_one_run_on_a_gpu_however_many_may_be_in_flight():
    found = plan(np.array([100] * 32), Capacity(layout="varlen", n_threads=1, n_narrow=2))
    assert [len(run) for run in found.narrow] == [32]


def test_rows_of_like_lengths_share_a_padded_run_and_short_ones_get_their_own():
    lengths = np.array([500, 490, 480] * 5 + [30] * 100)
    first, second = plan(lengths, Capacity(layout="padded", n_threads=1, n_narrow=2)).runs
    assert set(first.tolist()) >= set(range(15))
    assert set(lengths[second].tolist()) == {30}


@pytest.mark.parametrize("layout", ["varlen", "padded"])
def test_a_few_rows_of_mixed_lengths_are_not_torn_apart(layout: Layout):
    assert len(plan(np.array([100, 90, 80, 20]), Capacity(layout=layout, n_threads=1, n_narrow=2)).runs) == 1


@pytest.mark.parametrize("layout", ["varlen", "padded"])
def test_a_row_of_any_length_has_its_run_on_a_gpu(layout: Layout):
    runs = plan(np.array([GPU_RUN_TOKENS + 1, 5]), Capacity(layout=layout, n_threads=1, n_narrow=2)).runs
    assert [run.tolist() for run in runs] == [[0], [1]]
