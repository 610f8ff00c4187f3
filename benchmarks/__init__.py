"""Measures rankrt and its alternatives: same text, same threads, in turn, speed beside accuracy."""

import os
import sys

# No measured system reports to its maker. Every process sets this first, and passes it to its children.
for _name, _off in {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",  # infinity
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
}.items():
    os.environ.setdefault(_name, _off)
# OpenVINO and NNCF read no variable. Without their reporter they report nothing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
