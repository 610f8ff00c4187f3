"""This host as a value, found once where something is loaded, and handed on from there."""

from dataclasses import dataclass
from functools import cached_property

from rankrt.host import gpus
from rankrt.host.cpu import Machine, this_machine
from rankrt.host.gpus import Gpus


@dataclass(frozen=True, kw_only=True)
class Host:
    """The processor with its cores, and the GPUs.

    The driver is asked for the GPUs at the first use of `gpus`. Asking it initialises CUDA in this process, so nothing
    asks where only the CPU is wanted.
    """

    machine: Machine
    has_driver: bool

    @cached_property
    def gpus(self) -> Gpus:
        """The NVIDIA GPUs that this process may see."""
        return gpus.find_gpus()


def this_host() -> Host:
    """Describe this host."""
    return Host(machine=this_machine(), has_driver=gpus.has_driver())
