"""Measures rankrt beside the engines a user would pick: same text, same threads, in turn, quality beside speed."""

import os
import sys

# No system that is measured reports to its maker. Every process here runs this first, and hands it to what it starts.
for _name, _off in {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",  # infinity
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
}.items():
    os.environ.setdefault(_name, _off)
# OpenVINO and NNCF read no variable; without their reporter they report nothing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
