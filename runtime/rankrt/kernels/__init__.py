"""rankrt's own operators for ONNX Runtime on a CPU, in C++: where their library is, and what it uses here.

The sources are in the repository's `kernels/`. A wheel for Linux on x86-64 brings the library; others have none.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

from rankrt.errors import DeviceError

# The dots keep Python from taking it for a module of this package.
LIBRARY = Path(__file__).with_name("rankrt_kernels.linux-x86_64.so")
# Those that the library has kernels for, the best first.
INSTRUCTION_SETS = ("avx512_vnni", "avx_vnni", "avx2")
VARIABLE = "RANKRT_KERNELS"


@cache
def kernels_in_use() -> str | None:
    """Return the instruction set that the operators use on this processor.

    It is the best that the processor has, or the one that RANKRT_KERNELS names. None means that operators cannot run:
    there is no library that this system can load, or it has no instruction set of this processor. Raises DeviceError
    if RANKRT_KERNELS has another name, or one that the processor lacks.
    """
    asked = os.environ.get(VARIABLE)
    if asked and asked not in INSTRUCTION_SETS:
        names = ", ".join(INSTRUCTION_SETS)
        raise DeviceError(f"{VARIABLE}={asked}: there are kernels for {names}. Name one of these, or unset it.")
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    library.rankrt_instruction_set.restype = ctypes.c_char_p
    used: str = library.rankrt_instruction_set().decode()
    if asked and used != asked:
        raise DeviceError(f"{VARIABLE}={asked}: this processor does not have it. Unset it to use the best that it has.")
    return used or None
