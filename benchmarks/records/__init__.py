"""What was measured: records, statistics, comparisons, reports, plots."""
