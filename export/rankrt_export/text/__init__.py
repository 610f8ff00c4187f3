"""The text that variants are calibrated and verified with."""
