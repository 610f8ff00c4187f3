"""The artifact: a folder of graphs, weights, a tokenizer and the manifest that describes them.

The export writes it and the runtime reads it; docs/artifact.md specifies it to the byte. Nothing here reads a graph or
a weight: an artifact is names, numbers and hashes.
"""

import hashlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from rankrt.artifact.calibration import Calibration, read_calibration
from rankrt.artifact.precisions import InstructionSet, Precision, Target, VariantKey
from rankrt.errors import ArtifactError
from rankrt.files.rights import unreadable

FORMAT_VERSION = 6
# Until then int8 on a CPU was one graph, and no instruction set was named.
_ONE_INT8_GRAPH = 2
# Until then int8 for rankrt's own kernels named none.
_NAMELESS_KERNELS = 5
MANIFEST = "rankrt.json"

# How a graph takes its rows. "packed": one flat sequence, with offsets. "stacked": a matrix of rows of one length.
# "causal": flat, in segments of layers, after a prefix that several rows may share. "varlen": flat, with the places
# that a GPU's attention takes. "padded": a matrix of rows that are padded to the longest, with their lengths. "spread":
# flat, with the places of rows of like lengths in a matrix, which attention alone takes.
Layout: TypeAlias = Literal["packed", "stacked", "causal", "varlen", "padded", "spread"]

# How many exits a variant may have. On a GPU a decoder is one graph, which ends after one.
_N_EXITS: Mapping[Layout, Container[int]] = {"causal": range(1, 1 << 16), "padded": (0, 1)}


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the manifest: immutable, every field by name, unknown fields refused."""


class Source(_Record, frozen=True):
    """The checkpoint that was exported. `license` and `languages` are those of its model card, where it has one."""

    id: str
    revision: str | None
    weights_sha256: str
    license: str | None = None
    languages: tuple[str, ...] = ()


class Prompt(_Record, frozen=True):
    """The words around query and passage of a model that was trained to find them there.

    Each text is put into its format as format.format(instruction, text).

    question     the text that the template's suffix ends with, after another separator, where the user may ask another
                 one; None where it may not be changed
    instructed_format  the format of a query whose request brings an instruction; None where there is no place for one
    instructions  instructions by name
    keeps_end    the words after a text stay when its end is cut
    strips       white space around a text is removed first
    style        what this way of asking is called, and `said_by` what says that the model is asked so
    """

    query_instruction: str
    query_format: str
    passage_instruction: str
    passage_format: str
    question: str | None
    instructed_format: str | None = None
    instructions: dict[str, str] = {}
    keeps_end: bool = False
    strips: bool = False
    style: str = ""
    said_by: str = ""


class Template(_Record, frozen=True):
    """The special tokens of a row: prefix, query, separator, passage, suffix; or the passage first, then the query.

    With token types, the tokens up to the separator's end are of type 0 and the rest are of type 1.
    """

    prefix: tuple[int, ...]
    separator: tuple[int, ...]
    suffix: tuple[int, ...]
    prompt: Prompt | None = None
    passage_first: bool = False

    @property
    def n_special(self) -> int:
        """The number of tokens of a row that are neither query nor passage."""
        return len(self.prefix) + len(self.separator) + len(self.suffix)

    def room(self, max_length: int) -> int:
        """Return how many tokens query and passage may have together.

        Special tokens count, except around a question. FlagEmbedding counts neither separators nor question there,
        and allows the question's length once more (its `encode_max_length`).
        """
        if self.prompt is None or self.prompt.question is None:
            return max_length - self.n_special
        return max_length - len(self.prefix) + len(self.suffix) - len(self.separator)

    def max_length_within(self, n_tokens: int) -> int:
        """Return the largest max_length by which no row has more tokens than that."""
        return n_tokens - (self.room(0) + self.n_special)


class Score(_Record, frozen=True):
    """What a logit of the model is.

    answers     the tokens of a decoder's vocabulary, or the labels of a classifier, that it is made of: the first one's
                logit, less the second one's if there are two; none for a model with a head of its own
    activation  what sentence-transformers puts it through by default; None if the checkpoint does not say
    """

    answers: tuple[str, ...] = ()
    activation: Literal["identity", "sigmoid"] | None = None


class Verification(_Record, frozen=True):
    """How a variant compares with the PyTorch model on text; differences are absolute, in logits."""

    reference: str
    text_sha256: str
    n_queries: int
    n_pairs: int
    max_difference: float
    mean_difference: float
    min_tau: float
    mean_tau: float
    top_k: int
    top_k_overlap: float


class KeptLayer(_Record, frozen=True):
    """A layer that is not in 8 bits, and the drift in logits, root mean square, that rounding it would have cost."""

    name: str
    drift: float


class Quantization(_Record, frozen=True):
    """How much of a variant is in 8 bits: the share of multiply-adds, and the layers that are not."""

    int8_share: float
    kept: tuple[KeptLayer, ...]
    text_sha256: str


class Margins(_Record, frozen=True):
    """How scores at an exit change until the last one, measured on the text of the verification.

    shares, gaps  in this share of the pairs of passages, one is at most this much below the other here and ends
                  above it; in ascending order
    rise          how much higher than here a score was at the end, at most
    """

    shares: tuple[float, ...]
    gaps: tuple[float, ...]
    rise: float

    def gap(self, share: float) -> float:
        """Return the gap of a share, or of the next larger one."""
        return next(gap for known, gap in zip(self.shares, self.gaps, strict=True) if known >= share)


class Exit(_Record, frozen=True):
    """A layer after which a score can be read, and the graph that leads there from the exit before."""

    layer: int
    graph: str
    verification: Verification | None
    margins: Margins | None


class Compression(_Record, frozen=True):
    """A layer after which passages become shorter: the mean of each `ratio` states takes their place.

    `graph` leads there from the exit or the compression before. It is None if the layer is an exit, which has a graph.
    """

    layer: int
    ratio: int
    graph: str | None


class Variant(_Record, frozen=True):
    """The model for one target in one precision: one graph, or several in a row.

    Each of several graphs ends at an exit or where passages are compressed.

    `graph` is the first to run. `verification` is that of the last exit. `instruction_set` is None where any processor
    will do.
    """

    target: Target
    precision: Precision
    layout: Layout
    graph: str
    data: tuple[str, ...]
    verification: Verification | None
    quantization: Quantization | None
    exits: tuple[Exit, ...] = ()
    instruction_set: InstructionSet | None = None
    compressions: tuple[Compression, ...] = ()

    @property
    def key(self) -> VariantKey:
        """Which of the model's variants it is."""
        return VariantKey(target=self.target, precision=self.precision, instruction_set=self.instruction_set)

    @property
    def name(self) -> str:
        """The variant as people call it, such as cpu-fp32 or cpu-int8-vnni."""
        return str(self.key)

    @property
    def files(self) -> tuple[str, ...]:
        """The files without which the variant cannot run."""
        return (*self.graphs, *self.data)

    @property
    def graphs(self) -> tuple[str, ...]:
        """The graphs, in the order in which they run."""
        return tuple(self.graphs_by_layer.values()) or (self.graph,)

    @property
    def graphs_by_layer(self) -> Mapping[int, str]:
        """The graphs of a variant with exits, by the layer after which each ends, in the order in which they run."""
        named = {end.layer: end.graph for end in self.exits}
        named |= {found.layer: found.graph for found in self.compressions if found.graph is not None}
        return dict(sorted(named.items()))


class File(_Record, frozen=True):
    """The size in bytes and the hash of a file of the artifact."""

    n_bytes: int
    sha256: str


class Example(_Record, frozen=True):
    """A pair and the PyTorch model's logit for it, by which any host can check itself."""

    query: str
    passage: str
    logit: float


class Manifest(_Record, frozen=True):
    """The content of rankrt.json."""

    format_version: int
    producer: str
    name: str
    architecture: str
    source: Source
    tokenizer: str
    template: Template
    max_length: int
    examples: tuple[Example, ...]
    variants: tuple[Variant, ...]
    files: dict[str, File]
    score: Score | None = None

    def __post_init__(self) -> None:
        """Refuse a manifest whose parts contradict each other or that points outside its folder."""
        for name in self.files:
            if Path(name).name != name or name in {"", ".", ".."}:
                raise ValueError(f"`files` names {name!r}, but an artifact is flat: a file name has no folder")
        named = {self.tokenizer, *(name for variant in self.variants for name in variant.files)}
        if unlisted := sorted(named - self.files.keys()):
            raise ValueError(f"`files` lacks the hash of {', '.join(unlisted)}")
        if not self.variants:
            raise ValueError("`variants` is empty")
        for variant in self.variants:
            layers = [found.layer for found in variant.exits]
            if len(layers) not in _N_EXITS.get(variant.layout, (0,)) or layers != sorted(set(layers)):
                raise ValueError(
                    "`exits` of a causal variant are its exits in ascending order, of a padded one the last if it is a"
                    " decoder's, of any other none"
                )
            _check_compressions(variant.compressions, layers, variant.layout)


def _check_compressions(found: Sequence[Compression], exits: Sequence[int], layout: Layout) -> None:
    """Raise ValueError unless passages are compressed on the way to the last exit of a causal variant."""
    layers = [one.layer for one in found]
    if found and (layout != "causal" or layers != sorted(set(layers)) or not 0 < layers[0] <= layers[-1] < exits[-1]):
        raise ValueError("`compressions` are those of a causal variant, in ascending order, before its last exit")
    for one in found:
        if one.ratio < 2 or (one.graph is None) != (one.layer in exits):
            raise ValueError("a compression has a `ratio` above 1, and a `graph` unless its layer is an exit")


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Artifact:
    """A folder whose manifest was understood. `identity` is the SHA-256 of rankrt.json, which holds all the others.

    calibration   what turns logits into probabilities, if it was fitted; the identity does not cover it
    """

    folder: Path
    manifest: Manifest
    identity: str
    calibration: Calibration | None = None

    def path(self, name: str) -> Path:
        """Return where the file of that name is; it need not exist."""
        return self.folder / name

    def n_weight_bytes(self, variant: Variant) -> int:
        """Return the bytes of a variant's data files."""
        return sum(self.manifest.files[name].n_bytes for name in variant.data)

    def check_sizes(self, names: Iterable[str]) -> None:
        """Raise ArtifactError if one of these files is missing or has another size than the manifest says."""
        for name in names:
            expected = self.manifest.files[name].n_bytes
            try:
                n_bytes = self.path(name).stat().st_size
            except FileNotFoundError:
                raise ArtifactError(f"{self.folder} lacks {name}; copy the whole artifact or export it again") from None
            except OSError as error:
                raise ArtifactError(unreadable(self.path(name), error)) from error
            if n_bytes != expected:
                raise ArtifactError(
                    f"{self.path(name)} has {n_bytes} bytes instead of {expected}: it was cut or changed"
                )

    def check_hashes(self, names: Iterable[str], sha256: Callable[[str], str] | None = None) -> None:
        """Raise ArtifactError if the content of one of these files is not what was exported.

        Reads the files whole, unless `sha256` knows better where the hash of a file comes from.
        """
        names = list(names)
        self.check_sizes(names)
        for name in names:
            try:
                found = sha256(name) if sha256 else sha256_of(self.path(name))
            except OSError as error:
                raise ArtifactError(unreadable(self.path(name), error)) from error
            if found != self.manifest.files[name].sha256:
                raise ArtifactError(
                    f"{self.path(name)} is not the file that was exported (its SHA-256 differs); copy the artifact"
                    " again or export it again"
                )


def open_artifact(folder: Path) -> Artifact:
    """Read the manifest of the artifact in that folder.

    Raises ArtifactError if there is none, if it or a calibration beside it is damaged, or if a newer rankrt wrote it.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{folder} is not a rankrt artifact: it has no {MANIFEST}") from None
    except OSError as error:
        raise ArtifactError(unreadable(path, error)) from error
    except ValueError as error:  # a name with a NUL
        raise ArtifactError(f"{str(folder)!r} is not the name of a folder: {error}") from error
    manifest, identity = parse_manifest(content, path), hashlib.sha256(content).hexdigest()
    calibration = read_calibration(folder, identity)
    return Artifact(folder=folder, manifest=manifest, identity=identity, calibration=calibration)


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """Decode a manifest; `path` is for messages. Raises ArtifactError for anything that is not one of this version."""
    try:
        version = msgspec.json.decode(content, type=_AnyVersion).format_version
        if version > FORMAT_VERSION:
            raise ArtifactError(
                f"{path} has format {version}, this rankrt reads up to {FORMAT_VERSION}: upgrade rankrt"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
        if version > _NAMELESS_KERNELS:
            return manifest
        return _with_instruction_set(manifest, "kernels" if version > _ONE_INT8_GRAPH else "avx2")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a manifest of format {FORMAT_VERSION}: {error}") from error


def _with_instruction_set(manifest: Manifest, name: InstructionSet) -> Manifest:
    """Return the manifest of an old format as a new one would say it: with what int8 on a CPU without a name was for.

    With one graph it had the 7 bits of AVX2. Beside named ones it was for rankrt's own kernels.
    """
    nameless = VariantKey(target="cpu", precision="int8")
    variants = (
        msgspec.structs.replace(variant, instruction_set=name) if variant.key == nameless else variant
        for variant in manifest.variants
    )
    return msgspec.structs.replace(manifest, variants=tuple(variants))


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write rankrt.json, for people to read as well."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / MANIFEST).write_bytes(content + b"\n")


def sha256_of(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _AnyVersion(msgspec.Struct):
    """The one field that every version of the manifest has."""

    format_version: int
