"""The statistics equal numpy's and scipy's, and intervals cover what they say."""

import numpy as np
import pytest
from scipy.stats import gmean, iqr

from benchmarks.records.statistics import change, mean_change, percentiles_ms, ratio, spread


@pytest.fixture
def seconds() -> np.ndarray:
    return np.random.default_rng(0).lognormal(sigma=0.3, size=200)


def test_percentiles_are_numpy_s_and_none_where_there_are_too_few_values(seconds: np.ndarray):
    found = percentiles_ms(seconds.tolist())
    assert found == pytest.approx({f"p{q}_ms": 1e3 * np.percentile(seconds, q) for q in (50, 95, 99)})
    assert percentiles_ms([1.0] * 99)["p99_ms"] is None
    assert percentiles_ms([1.0] * 19)["p95_ms"] is None
    assert percentiles_ms([1.0, 2.0, 3.0])["p50_ms"] == 2000


def test_the_spread_is_the_interquartile_range_of_the_median(seconds: np.ndarray):
    assert spread(seconds.tolist()) == pytest.approx(iqr(seconds) / np.median(seconds))


def test_a_drift_of_the_machine_cancels_in_a_ratio_of_neighbours():
    drift = np.linspace(1, 3, 9)
    assert ratio((2 * drift).tolist(), drift.tolist()) == pytest.approx(2)


def test_an_interval_of_a_change_is_that_of_resampled_medians(seconds: np.ndarray):
    old, new = seconds[:100], 1.2 * seconds[100:]
    found = change(old.tolist(), new.tolist())
    random = np.random.default_rng(1)
    medians = [np.median(random.choice(new, 100)) / np.median(random.choice(old, 100)) for _ in range(5000)]
    assert found.ratio == np.median(new) / np.median(old)
    # 5,000 resamples leave about half a percent of noise in an end of the interval.
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(medians, (2.5, 97.5))), rel=0.02)


def test_equal_distributions_are_called_different_about_one_time_in_twenty():
    random = np.random.default_rng(2)
    n_real = sum(
        change(random.normal(1, 0.1, 15).tolist(), random.normal(1, 0.1, 15).tolist()).is_real for _ in range(100)
    )
    assert n_real <= 12  # 5 expected; more than 12 would happen once in 700 times


def test_a_mean_of_changes_is_geometric():
    ratios = [0.5, 2.0, 1.5, 1.1]
    found = mean_change(ratios)
    assert found.ratio == pytest.approx(gmean(ratios))
    assert found.low < found.ratio < found.high


def test_a_single_value_has_no_noise_to_exceed():
    with pytest.raises(ValueError, match="1 and 3 values, expected at least 2"):
        change([1.0], [1.0, 2.0, 3.0])
