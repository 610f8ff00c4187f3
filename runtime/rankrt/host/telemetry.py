"""What the libraries below would report to their makers, turned off. `import rankrt` does it, before any of them.

ONNX Runtime reports from Linux since 1.29: three calls in the first 25 s of a process, and a device id below HOME. It
reads its variable once, when it is imported; its own `disable_telemetry_events` came too late in every order tried.
huggingface_hub puts what is installed into its requests, and asks the hub which agents there are. OpenVINO reports when
its tools convert a model, which rankrt never does, through a package of its own.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rankrt.notices import warn_once

_VARIABLES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

# This module is imported before it sets a variable, and long before rankrt needs ONNX Runtime.
_ENGINE_CAME_FIRST = (
    sys.platform == "linux" and "onnxruntime" in sys.modules and not os.environ.get("ORT_DISABLE_TELEMETRY")
)

_OPENVINOS = "openvino_telemetry"


def turn_off() -> None:
    """Set the variables, for this process and those that it starts. What the user's environment says is respected."""
    for name, value in _VARIABLES.items():
        if not os.environ.get(name):  # an empty ORT_DISABLE_TELEMETRY means "report"
            os.environ[name] = value


@contextmanager
def without_openvinos() -> Iterator[None]:
    """Let OpenVINO be imported in the block as if its telemetry package were not installed.

    Then its tools report nothing in this process. A program that imported the package before keeps it.
    """
    if _OPENVINOS in sys.modules:
        yield
        return
    sys.modules[_OPENVINOS] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        yield
    finally:
        del sys.modules[_OPENVINOS]


def warn_if_too_late() -> None:
    """Say, once, that ONNX Runtime may report because it was imported before rankrt."""
    if _ENGINE_CAME_FIRST:
        warn_once(
            "onnxruntime was imported before rankrt, so it may report this process to its maker; import rankrt first,"
            " or set ORT_DISABLE_TELEMETRY=1"
        )
