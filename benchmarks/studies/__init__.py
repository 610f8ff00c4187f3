"""Measurements of one question each, apart from the suites."""
