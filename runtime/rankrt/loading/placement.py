"""A variant of an artifact, where it runs on this host, and what was prepared for it there. Only values."""

from dataclasses import dataclass

import msgspec

from rankrt.artifact.manifest import Artifact, Variant
from rankrt.backends.session import Form
from rankrt.files.cache import Key
from rankrt.host.device import Device
from rankrt.host.gpus import Gpu
from rankrt.host.host import Host

# Two measurements of the same on a busy machine differ by a few percent.
_FASTER = 0.95


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A variant as it was prepared for a GPU or measured on a processor, and how far it differs from the manifest.

    key             what it depends on: artifact, GPU or processor, driver and all software
    max_length      the most tokens of a row that the engines take; None is whatever the model takes
    engines         the files of the engines
    n_examples      how many examples were scored; without any the variant ran, but is not verified
    max_difference  of all of them in all engines, in logits
    limit           what it was allowed to be
    relative_time   how long it takes on a processor, fp32 being 1; None on a GPU
    """

    key: Key
    max_length: int | None
    engines: tuple[str, ...]
    n_examples: int
    max_difference: float
    limit: float
    relative_time: float | None = None

    @property
    def is_verified(self) -> bool:
        """Whether scores were compared."""
        return self.n_examples > 0

    @property
    def is_faster(self) -> bool:
        """Whether it is faster than fp32, by more than chance explains."""
        return self.relative_time is not None and self.relative_time < _FASTER


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """All that opening a variant here needs to know.

    gpu     the GPU, whose libraries this process has loaded; None on a CPU
    record  of the variant as it was prepared for that GPU, if it was
    """

    artifact: Artifact
    variant: Variant
    device: Device
    host: Host
    gpu: Gpu | None = None
    record: Record | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the artifact without which the variant cannot run."""
        return self.variant.files

    @property
    def can_be_prepared(self) -> bool:
        """Whether a copy of it can be packed for this processor.

        OpenVINO packs weights itself. rankrt's kernels take them as the artifact has them.
        """
        key = self.variant.key
        return not (self.device.is_gpu or key.is_for_openvino or key.needs_kernels)

    @property
    def form(self) -> Form:
        """How a session on the CPU takes the artifact's graph here."""
        if self.variant.key.needs_kernels:
            return "kernels"
        lacks_vnni = "vnni" not in self.host.machine.instruction_sets
        return "widened" if self.variant.instruction_set == "vnni" and lacks_vnni else "exported"
