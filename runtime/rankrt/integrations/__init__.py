"""Adapters for frameworks, one file each. Only that file imports its framework."""
