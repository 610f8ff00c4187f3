"""What keeps an export from being done here: each check refuses before anything is computed or written."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rankrt.artifact.precisions import TARGETS, VariantKey
from rankrt_export.architectures import ARCHITECTURES, deberta
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.families import LIGHTWEIGHT
from rankrt_export.checkpoint.modules import MODULES
from rankrt_export.errors import CheckpointError, OptionsError, OutputError
from rankrt_export.job.job import Job
from rankrt_export.job.options import Options
from rankrt_export.precision.methods import method_of
from rankrt_export.verify.memory import available_bytes

# What tracing writes.
TRACED = VariantKey(target="cpu", precision="fp32")


def check_is_new(out: Path) -> None:
    """Raise OutputError if there is something of that name already."""
    if out.exists():
        raise OutputError(f"{out} exists; remove it or choose another folder: an artifact is never written over")


def check_limits(options: Options) -> None:
    """Raise OptionsError for limits that nothing or everything would be within."""
    if (drift := options.max_difference) is not None and not drift > 0:
        raise OptionsError(f"--max-drift {drift:g}: a difference in logits is a number above 0")
    if (tau := options.min_tau) is not None and not -1 <= tau <= 1:
        raise OptionsError(f"--min-tau {tau:g}: Kendall's tau is between -1 and 1")


def check_checkpoint(checkpoint: Checkpoint, variants: Sequence[VariantKey], options: Options) -> None:
    """Raise CheckpointError if a checkpoint cannot be written in one of the variants, or an option is not for it."""
    for name in ("cutoff_layers", "compress_layers", "compress_ratio", "prompt"):
        if getattr(options, name) is not None and not checkpoint.is_decoder:
            raise CheckpointError(f"{name} is for decoders; {checkpoint.id} is a {checkpoint.architecture}")
    _check_is_one_graph(checkpoint, options, _gpus(variants))
    is_for_openvino = not checkpoint.is_decoder and checkpoint.architecture not in deberta.CLASSES
    if not is_for_openvino and (keys := [key for key in variants if key.is_for_openvino]):
        raise CheckpointError(
            f"{keys[0]} is not written for a {checkpoint.architecture}, which {checkpoint.id} is. Leave"
            f" {keys[0].precision} out, or name a GPU with --target"
        )
    if checkpoint.architecture in ARCHITECTURES:
        return
    if checkpoint.saved.head is not None:  # transformers, which tracing needs, cannot load it
        raise CheckpointError(
            f"{checkpoint.id} is a {checkpoint.architecture} whose score is computed by sentence-transformers' modules"
            f" Pooling, Dense and LayerNorm ({MODULES}); that is not implemented for this class"
        )
    if set(variants) <= {TRACED}:
        return
    if on_gpus := _gpus(variants):
        raise CheckpointError(
            f"{checkpoint.architecture} is exported by tracing, for the CPU only, not for {on_gpus};"
            f" GPU targets are for {', '.join(ARCHITECTURES)}"
        )
    raise CheckpointError(
        f"{checkpoint.architecture} is exported by tracing, for the CPU in {TRACED.precision} only; other precisions"
        f" are for {', '.join(ARCHITECTURES)}"
    )


def _check_is_one_graph(checkpoint: Checkpoint, options: Options, on_gpus: str) -> None:
    """Raise CheckpointError for options that need several graphs. A decoder is one graph on a GPU."""
    if not on_gpus or checkpoint.architecture != LIGHTWEIGHT:
        return
    if options.compress_ratio is not None and options.compress_ratio > 1:
        raise CheckpointError(
            f"--compress-ratio {options.compress_ratio} is for CPUs only, not for {on_gpus}. Passages become shorter"
            " between two graphs, and on a GPU a decoder is one graph. Leave the option out, or the GPU"
        )
    if len(layers := sorted(set(options.cutoff_layers or ()))) > 1:
        raise CheckpointError(
            f"--cutoff-layers {' '.join(map(str, layers))}: for {on_gpus} name one layer. On a GPU the graph ends after"
            f" the last one, and FlagEmbedding reads layer {layers[-1]} by another head if it is asked for alone"
        )


def _gpus(variants: Sequence[VariantKey]) -> str:
    """Return the names of the targets that are GPUs, in words; empty if there are none."""
    return " and ".join(dict.fromkeys(key.target for key in variants if TARGETS[key.target].is_gpu))


def check_has_room(job: Job, out: Path) -> None:
    """Raise OutputError if the disk is too small."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    needed, free = estimate_bytes(job), shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(f"{parent} has {free / 1e9:.1f} GB free, the artifact takes about {needed / 1e9:.1f} GB")


def estimate_bytes(job: Job) -> int:
    """Return about how many bytes the data files take: a precision's, which its targets share, or a variant's own."""
    per_weight: dict[object, float] = {}
    for key in job.variants:
        own, stored_as = method_of(key).bytes_per_weight, key.row.stored_as or key.precision
        per_weight |= {stored_as: key.row.bytes_per_weight} if own is None else {key: own}
    return int(job.n_parameters * sum(per_weight.values()))


def check_has_memory(job: Job) -> None:
    """Raise OutputError if verifying or calibrating would not fit into memory.

    Writing takes a few hundred MB whatever the size. To verify, ONNX Runtime packs the layers of a variant. The PyTorch
    model of a decoder comes layer by layer, but whole for an encoder and to calibrate, then with each layer's weights
    rounded beside it: as float32, and as they are stored for the two graphs. What the model reads of the text is not
    counted, as it depends on the text: 2 GB with 568 M parameters.
    """
    loaded = max(method_of(key).bytes_in_memory or key.row.bytes_in_memory for key in job.variants)
    whole, layers = 4 * job.n_parameters, job.n_layer_parameters
    needed = {}
    if job.texts is not None:
        needed["verifying"] = loaded * layers + (0 if job.checkpoint.is_decoder else whole)
    if job.calibrated:
        needed["calibrating"] = whole + 6 * layers
    available = available_bytes()
    for step, n_bytes in sorted(needed.items(), key=lambda item: -item[1]):
        if available is not None and available < n_bytes:
            advice = "; --no-verify does without" if step == "verifying" else ""
            raise OutputError(
                f"{step} {job.checkpoint.name} takes about {n_bytes / 1e9:.1f} GB of memory, and"
                f" {available / 1e9:.1f} GB are available: use a machine with more{advice}"
            )
