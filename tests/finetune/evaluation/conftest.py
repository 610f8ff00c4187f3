"""Evaluation needs its extra."""

import pytest

for module in ("ir_measures", "bm25s", "scipy"):
    pytest.importorskip(module, reason="needs the evaluate extra")
