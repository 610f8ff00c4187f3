"""How results are shown: tables, pictures, and pages of both. Knows cells and curves, not where they come from."""
