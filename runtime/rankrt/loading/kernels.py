"""Whether rankrt's own kernels run on this host, and whether nothing is faster for int8 here. Loads no model."""

import os
from dataclasses import dataclass

from rankrt.errors import DeviceError
from rankrt.host.cpu import Machine
from rankrt.kernels import LIBRARY, kernels_in_use

_VARIABLE = "RANKRT_KERNELS"


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

    def why_not_first(self, machine: Machine) -> str | None:
        """Return why another way to multiply bytes goes first on a processor; None if the kernels do."""
        if self.instruction_set is None:
            return self.why_not
        if self.is_forced:
            return None
        if machine.multiplies_tiles:
            return "ONNX Runtime uses AMX here, which the kernels do not"
        if self.instruction_set == "avx2":
            return "the processor lacks VNNI, without which they are as slow as fp32"
        return None


NO_KERNELS = Kernels()


def these_kernels() -> Kernels:
    """Describe the kernels of this process. Raises DeviceError if RANKRT_KERNELS names some that do not run here."""
    found, forced = kernels_in_use(), os.environ.get(_VARIABLE)
    if forced and found != forced:
        raise DeviceError(
            f"{_VARIABLE}={forced}, but no kernels of that name run here; use avx512_vnni, avx_vnni or avx2 if the"
            " processor has it, or unset it"
        )
    return Kernels(instruction_set=found, is_forced=bool(forced))
