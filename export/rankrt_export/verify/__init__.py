"""Comparing a written variant with the reference."""
