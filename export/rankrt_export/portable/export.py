"""From a checkpoint to a folder of plain ONNX: the graphs, compared with PyTorch, and the files that others expect."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankrt.artifact.precisions import PRECISIONS
from rankrt.artifact.source import Hub
from rankrt.files.folders import new_folder
from rankrt.text.options import Rules
from rankrt.text.pairs import PairTokenizer
from rankrt.text.tokenizers import LibraryTokenizer
from rankrt_export.architectures import ARCHITECTURES, deberta
from rankrt_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from rankrt_export.checkpoint.tokenizer import read_tokenizer, template_of
from rankrt_export.errors import CheckpointError, OptionsError, OutputError, VerificationError
from rankrt_export.job.checks import check_is_new, check_limits
from rankrt_export.job.options import Bar, Options, no_bar
from rankrt_export.portable.compare import compare_graph
from rankrt_export.portable.folder import GraphFile, write_beside, write_card
from rankrt_export.portable.graphs import FILES, PORTABLE_PRECISIONS, PortablePrecision, quantize, write_graph
from rankrt_export.text.texts import sample
from rankrt_export.verify.rows import VERIFIED_LENGTH, RowMaker
from rankrt_export.verify.verify import Limits, Reference, limits_for, reference

GRAPHS = "onnx"
# The operators whose weights become int8. Tables of vectors are most of a small multilingual model: first with them.
_ROUNDED = (("MatMul", "Gather"), ("MatMul",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Portable:
    """A folder that was written, and its graphs."""

    folder: Path
    files: Sequence[GraphFile]


def export_portable(source: str, out: Path, options: Options, *, hub: Hub | None = None, bar: Bar = no_bar) -> Portable:
    """Export a checkpoint, a folder or a hub id, into a folder of plain ONNX that does not exist yet.

    The folder appears when every graph is written and compared, or not at all. Raises CheckpointError, OptionsError,
    OutputError, or VerificationError for a graph that is outside its limits.
    """
    check_is_new(out)
    check_limits(options)
    precisions = _checked(options)
    checkpoint = open_checkpoint(source, hub or Hub())
    _check_checkpoint(checkpoint)
    try:
        with new_folder(out) as folder:
            write_beside(checkpoint, folder)
            files = _Writer(checkpoint, folder, options, bar).write(precisions)
            write_card(checkpoint, folder, files)
    except OSError as error:
        raise OutputError(f"{out} could not be written ({error.strerror or error}); nothing was left there") from error
    return Portable(folder=out, files=files)


def _checked(options: Options) -> Sequence[PortablePrecision]:
    """Return the precisions that are wanted. Raises OptionsError for what has no meaning here."""
    if unknown := [precision for precision in options.precisions if precision not in PORTABLE_PRECISIONS]:
        raise OptionsError(f"portable has no {' or '.join(unknown)}; it has {', '.join(PORTABLE_PRECISIONS)}")
    for name in ("cutoff_layers", "prompt", "calibration"):
        if getattr(options, name) is not None:
            raise OptionsError(f"--{name.replace('_', '-')} is not for --target portable. Leave it out")
    if not options.is_verified and (options.max_difference, options.min_tau) != (None, None):
        raise OptionsError("--max-drift and --min-tau have no effect with --no-verify. Leave one of them out")
    return [precision for precision in PORTABLE_PRECISIONS if precision in options.precisions]


def _check_checkpoint(checkpoint: Checkpoint) -> None:
    if checkpoint.is_decoder:
        raise CheckpointError(
            f"{checkpoint.id} is a {checkpoint.architecture}, a decoder. --target portable is for encoders: other"
            " runtimes expect other inputs and outputs of a decoder"
        )
    written = [name for name in ARCHITECTURES if name not in deberta.CLASSES]
    if checkpoint.architecture not in written:
        encoders = ", ".join(name for name in written if name.endswith("ForSequenceClassification"))
        raise CheckpointError(
            f"{checkpoint.architecture} is not implemented for --target portable, which is for {encoders}"
        )


class _Writer:
    """The graphs of one export. PyTorch is asked once."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, options: Options, bar: Bar) -> None:
        self._checkpoint = checkpoint
        self._folder = folder
        self._options = options
        self._bar = bar
        self._graphs = folder / GRAPHS
        self._scratch = folder / ".scratch"
        self._rows = _rows(checkpoint, folder / "tokenizer.json")

    def write(self, precisions: Sequence[PortablePrecision]) -> list[GraphFile]:
        """Write and compare the graphs of all precisions."""
        self._graphs.mkdir()
        self._scratch.mkdir()
        against = self._ask_pytorch() if self._options.is_verified else None
        files = [self._write(precision, against) for precision in precisions]
        shutil.rmtree(self._scratch)
        return files

    def _write(self, precision: PortablePrecision, against: Reference | None) -> GraphFile:
        path = self._graphs / FILES[precision]
        if precision != "int8":
            self._write_float(precision, path)
            return self._compared(precision, path, against)
        exact = self._graphs / FILES["fp32"]
        if not exact.exists():
            exact = self._scratch / FILES["fp32"]
            self._write_float("fp32", exact)
        *tries, last = _ROUNDED
        for operators in tries:
            quantize(exact, path, operators)
            try:
                return self._compared(precision, path, against)
            except VerificationError:
                path.unlink()
        quantize(exact, path, last)
        return self._compared(precision, path, against)

    def _write_float(self, precision: PortablePrecision, path: Path) -> None:
        assert precision != "int8", "that is quantized"
        names = self._checkpoint.weights.names
        n_bytes = sum(int(np.prod(self._checkpoint.weights.shape(name))) for name in names)
        with self._bar("writing", n_bytes * PRECISIONS[precision].bytes_per_weight.__ceil__(), "B") as progress:
            write_graph(self._checkpoint, precision, path, self._scratch, progress)

    def _compared(self, precision: PortablePrecision, path: Path, against: Reference | None) -> GraphFile:
        """Return a graph with its figures. Raises VerificationError if it is outside its limits."""
        verification = None
        if against is not None:
            limits = _limits(precision, self._options)
            with self._bar(precision, len(against.texts.pairs), "pair") as progress:
                verification = compare_graph(path, self._rows, against, progress)
            if verification.max_difference > limits.max_difference or verification.mean_tau < limits.min_tau:
                raise VerificationError(
                    f"{path.name} differs from PyTorch by up to {verification.max_difference:.2g} (limit"
                    f" {limits.max_difference:g}), with a mean Kendall's tau of {verification.mean_tau:.3f} (at least"
                    f" {limits.min_tau:g}); nothing was written. Allow more with --max-drift and --min-tau, or choose"
                    " other precisions with --precision"
                )
        n_bytes = sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))
        return GraphFile(precision=precision, path=f"{GRAPHS}/{path.name}", n_bytes=n_bytes, verification=verification)

    def _ask_pytorch(self) -> Reference:
        texts = sample() + self._options.texts if self._options.texts else sample()
        with self._bar("PyTorch", len(texts.pairs), "pair") as progress:
            return reference(self._checkpoint, self._rows, texts, (), progress)


def _limits(precision: PortablePrecision, options: Options) -> Limits:
    """Return how far a graph may be from PyTorch: an int8 for any runtime is told, more than it is limited.

    One scale for all activations of a product costs up to 1.9 in logits with a small trained model, whichever of the
    quantizer's options are taken. rankrt's own int8, with a scale for each token, stays within 0.25.
    """
    if precision != "int8":
        return limits_for(precision, options.max_difference, options.min_tau)
    loosest = PRECISIONS["int4"]
    return Limits(
        max_difference=loosest.max_difference if options.max_difference is None else options.max_difference,
        min_tau=loosest.min_tau if options.min_tau is None else options.min_tau,
    )


def _rows(checkpoint: Checkpoint, tokenizer: Path) -> RowMaker:
    template = template_of(read_tokenizer(checkpoint), checkpoint.saved)
    limit = min(VERIFIED_LENGTH, template.max_length_within(checkpoint.max_length))
    return RowMaker(
        tokenizer=PairTokenizer(LibraryTokenizer.open(tokenizer), template),
        rules=Rules(max_length=limit, truncation="longest_first"),
    )
