"""Measurements: records, statistics, comparisons, reports, plots."""
