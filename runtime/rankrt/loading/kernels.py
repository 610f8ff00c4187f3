"""Whether rankrt's own kernels run on this host, and in which precisions nothing is faster here. Loads no model."""

import os
from dataclasses import dataclass

from rankrt.artifact.precisions import PRECISIONS, Precision
from rankrt.errors import DeviceError
from rankrt.host.cpu import Machine
from rankrt.kernels import LIBRARY, VARIABLE, kernels_in_use


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """rankrt's kernels on a host.

    instruction_set  that they use; None if they do not run there
    is_forced        whether RANKRT_KERNELS names it, and not the processor decides
    """

    instruction_set: str | None = None
    is_forced: bool = False

    @property
    def why_not(self) -> str | None:
        """What keeps the kernels from running; None if nothing does."""
        if self.instruction_set is not None:
            return None
        if not LIBRARY.exists():
            return "this installation has no library of kernels, which rankrt's wheel for Linux on x86-64 brings"
        return "their library needs Linux on an x86-64 processor with AVX2"

    def why_not_first(self, precision: Precision, machine: Machine) -> str | None:
        """Return why ONNX Runtime's products go first in a precision on a processor; None if the kernels do.

        ONNX Runtime has AMX for bytes, but not for floats.
        """
        if self.instruction_set is None:
            return self.why_not
        if self.is_forced:
            return None
        if not PRECISIONS[precision].needs_fast_bytes:
            return None if self.instruction_set == "avx512_vnni" else "without AVX-512 they were not measured in fp32"
        if machine.multiplies_tiles:
            return "ONNX Runtime uses AMX here, which the kernels do not"
        if self.instruction_set == "avx2":
            return "the processor lacks VNNI, without which they are as slow as fp32"
        return None


NO_KERNELS = Kernels()


def these_kernels() -> Kernels:
    """Describe the kernels of this process. Raises DeviceError if RANKRT_KERNELS names some and they do not run."""
    forced = os.environ.get(VARIABLE)
    found = Kernels(instruction_set=kernels_in_use(), is_forced=bool(forced))
    if found.is_forced and found.why_not is not None:
        raise DeviceError(f"{VARIABLE}={forced}, but {found.why_not}; unset it")
    return found
