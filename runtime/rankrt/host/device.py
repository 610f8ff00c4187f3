"""Where a model may run: the CPU, or a GPU by its number, through CUDA or TensorRT. Knows names only: asks no host."""

import re
from dataclasses import dataclass

from rankrt.artifact.precisions import TARGETS, Target
from rankrt.errors import InputError

AUTO = "auto"
_GPU = re.compile(r"(cuda|tensorrt)(?::(\d{1,3}))?")


@dataclass(frozen=True, slots=True)
class Device:
    """A way to compute, and the number of the GPU as CUDA counts those that the process may see."""

    target: Target
    index: int = 0

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return TARGETS[self.target].is_gpu

    def __str__(self) -> str:
        return f"{self.target}:{self.index}" if self.is_gpu else self.target

    @classmethod
    def parse(cls, text: str) -> "Device | None":
        """Read a device as users write it; None is "auto", the choice of the host.

        Raises InputError for anything else than "auto", "cpu", "cuda", "cuda:1", "tensorrt", "tensorrt:1".
        """
        if text == AUTO:
            return None
        if text == "cpu":
            return cls("cpu")
        if (found := _GPU.fullmatch(text) if isinstance(text, str) else None) is None:
            targets = ", ".join(map(repr, TARGETS))
            raise InputError(f"device={text!r}, expected 'auto', {targets}, or one with a GPU's number as 'cuda:1'")
        return cls("cuda" if found[1] == "cuda" else "tensorrt", int(found[2] or 0))
