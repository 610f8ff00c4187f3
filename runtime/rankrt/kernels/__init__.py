"""rankrt's own operators for ONNX Runtime on a CPU, in C++: where their library is, and what it uses here.

The sources are in the repository's `kernels/`. A wheel for Linux on x86-64 brings the library; others have none.
"""

import ctypes
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).with_name("rankrt_kernels.so")


@cache
def kernels_in_use() -> str | None:
    """Return the instruction set that the operators use on this processor; None if there is no library for it."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    library.rankrt_instruction_set.restype = ctypes.c_char_p
    return library.rankrt_instruction_set().decode() or None
