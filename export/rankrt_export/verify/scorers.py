"""How a variant that was just written is run here, to be compared with PyTorch."""

from collections.abc import Iterable
from typing import Protocol

from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Artifact, Variant
from rankrt.backends.openvino import why_not_bf16
from rankrt.backends.providers import gpu_for
from rankrt.errors import DeviceError
from rankrt.host.device import Device
from rankrt.host.host import this_host
from rankrt.loading.choose import place_variant
from rankrt.loading.model import Model
from rankrt.loading.open import open_backend, open_pair_tokenizer
from rankrt.options import LoadOptions
from rankrt.reranker import Reranker
from rankrt.text.pairs import Pair
from rankrt_export.verify.rows import RowMaker, verified_rules
from rankrt_export.verify.tensorrt_on_cpu import GraphOnCpu


class Scorer(Protocol):
    """A variant that scores pairs as the reference does."""

    variant: Variant

    def score(self, pairs: Iterable[Pair], *, cutoff_layers: Iterable[int] | None = None) -> Float32Array:
        """Return a logit for each pair, (n_pairs,), or with exits (n_exits, n_pairs)."""
        ...

    def close(self) -> None:
        """Release the model."""
        ...


def can_run(variant: Variant) -> bool:
    """Tell whether this host can run a variant: CUDA's attention has no CPU kernel, and few CPUs have brain floats."""
    if variant.key.is_for_openvino:
        return why_not_bf16(this_host().machine) is None
    if variant.target != "cuda":
        return True
    try:
        gpu_for(Device("cuda"), this_host())
    except DeviceError:
        return False
    return True


def load(artifact: Artifact, variant: Variant) -> Scorer:
    """Load a variant as any host would, but from the artifact itself; of one for TensorRT the graph, on the CPU."""
    if variant.target == "tensorrt":
        return GraphOnCpu(artifact, variant, RowMaker.open(artifact))
    host, options = this_host(), LoadOptions(prepare=False)
    placement = place_variant(artifact, variant, Device(variant.target), host)
    model = Model(
        placement,
        open_pair_tokenizer(placement, prepare=False),
        find=lambda precision: placement,
        load=lambda chosen: open_backend(chosen, options, host.machine.cores.n),
    )
    return Reranker(model, verified_rules(artifact))
