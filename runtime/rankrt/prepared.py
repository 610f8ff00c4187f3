"""The host's cache of prepared models: graphs that ONNX Runtime has optimised, with weights in its kernels' layout.

Every session packs the weight matrices for its processor: 1 s and 1.2 GB of private memory for a model of 568 M
parameters, in every process. Packed once into a file, they load in under a second and all processes share them through
the page cache. Such a file belongs to one artifact, one ONNX Runtime and one instruction set, so it is kept on the
host, not in the artifact.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import tokenizers

from rankrt.artifact import Artifact, InstructionSet, Precision, Variant
from rankrt.atomic import cache_folder, made_once, size_of
from rankrt.backends.ort import import_onnxruntime, open_session, session_options
from rankrt.errors import ArtifactError
from rankrt.machine import Machine
from rankrt.unigram_tokenizer import UnigramTokenizer

_GRAPH, _WEIGHTS, _ENTRY = "model{}.onnx", "weights{}.data", "prepared.json"
# Smaller tensors stay in the graph file, which is read at once.
_MIN_EXTERNAL_BYTES = 1024
# Packed copies stand beside the originals: 1.53 and 2.6 times the artifact were measured with 568 M parameters.
_GROWTH: dict[Precision, float] = {"fp32": 1.6, "fp16": 2.7, "w8": 1.7, "int8": 1.7, "fp8": 1.7, "int4": 1.7}


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What a prepared model was made from."""

    name: str
    variant: str
    artifact: str
    engine: str
    instructions: Sequence[str]

    @property
    def folder_name(self) -> str:
        """A name that no other artifact, engine or processor has."""
        digest = hashlib.sha256(msgspec.json.encode(self)).hexdigest()
        return f"{self.name}-{self.variant}-{digest[:16]}"


class PreparedModels:
    """The prepared models below one folder. Processes may share it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "prepared"

    def entry(self, artifact: Artifact, variant: Variant, machine: Machine) -> Prepared:
        """Describe what a variant would be prepared as on this machine."""
        return Prepared(
            name=artifact.manifest.name,
            variant=variant.name,
            artifact=artifact.identity,
            engine=f"onnxruntime {import_onnxruntime().__version__}",
            instructions=(machine.architecture, *machine.instructions),
        )

    def has(self, entry: Prepared) -> bool:
        """Tell whether `graphs` would return at once."""
        return (self.folder / entry.folder_name).exists()

    def graphs(self, entry: Prepared, artifact: Artifact, variant: Variant) -> list[Path]:
        """Return the prepared graphs of a variant; make them, once per host, if they are not there yet.

        Making it takes about 10 s per GB. Raises ArtifactError if a file of the artifact is not what was exported, and
        OSError if the folder cannot be written or the disk is too small.
        """

        def make(unfinished: Path) -> None:
            artifact.check_hashes(variant.files)
            _check_space(unfinished, artifact, variant)
            for number, name in enumerate(variant.graphs):
                _pack(artifact.path(name), unfinished, number, variant.instruction_set)
            (unfinished / _ENTRY).write_bytes(msgspec.json.encode(entry))

        folder = made_once(self.folder / entry.folder_name, make)
        return [folder / _numbered(_GRAPH, number) for number in range(len(variant.graphs))]

    def tokenizer(self, artifact: Artifact) -> UnigramTokenizer | None:
        """Return the artifact's tokenizer over a mapped vocabulary, or None if it is not of the kind that has one.

        Raises ArtifactError and OSError as `graph` does.
        """
        name = artifact.manifest.tokenizer
        entry = Prepared(
            name=artifact.manifest.name,
            variant="vocabulary",
            artifact=artifact.manifest.files[name].sha256,
            engine=f"tokenizers {tokenizers.__version__}",
            instructions=(),
        )
        artifact.check_sizes([name])
        if self.has(entry):
            return UnigramTokenizer.open(self.folder / entry.folder_name)
        if (tokenizer := UnigramTokenizer.read(artifact.path(name))) is None:
            return None

        def make(unfinished: Path) -> None:
            artifact.check_hashes([name])
            tokenizer.save(unfinished)
            (unfinished / _ENTRY).write_bytes(msgspec.json.encode(entry))

        return UnigramTokenizer.open(made_once(self.folder / entry.folder_name, make))

    def entries(self) -> list[tuple[Prepared, int]]:
        """Return what is there, with sizes in bytes, sorted by name."""
        paths = sorted(self.folder.glob(f"*/{_ENTRY}"))
        return [(_read_entry(path), size_of(path.parent)) for path in paths]

    def clear(self) -> int:
        """Remove everything and return the bytes freed; a process that uses an entry keeps its own view of it."""
        n_bytes = size_of(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        return n_bytes


def _read_entry(path: Path) -> Prepared:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Prepared)
    except msgspec.MsgspecError:  # of another version of rankrt, or damaged: never used, but it takes its room
        return Prepared(name=path.parent.name, variant="unreadable", artifact="", engine="", instructions=())


def _check_space(folder: Path, artifact: Artifact, variant: Variant) -> None:
    n_bytes = sum(artifact.manifest.files[name].n_bytes for name in variant.files)
    needed, free = int(n_bytes * _GROWTH[variant.precision]), shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{folder.parent} has {free / 1e9:.1f} GB free, the prepared model takes {needed / 1e9:.1f} GB")


def _numbered(name: str, number: int) -> str:
    return name.format(number or "")


def _pack(graph: Path, folder: Path, number: int, instruction_set: InstructionSet | None) -> None:
    options = session_options(1, instruction_set=instruction_set)
    options.optimized_model_filepath = str(folder / _numbered(_GRAPH, number))
    settings = {
        "session.save_external_prepacked_constant_initializers": "1",
        "session.optimized_model_external_initializers_file_name": _numbered(_WEIGHTS, number),
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_MIN_EXTERNAL_BYTES),
    }
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    open_session(graph, options)
    if not (folder / _numbered(_GRAPH, number)).exists():
        raise ArtifactError(f"ONNX Runtime wrote no prepared model for {graph}")
