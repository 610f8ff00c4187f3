"""The host's cache of prepared models: graphs that ONNX Runtime has optimised, with weights in its kernels' layout.

Every session packs the weight matrices for its processor: 1 s and 1.2 GB of private memory for a model of 568 M
parameters, in every process. Packed once into a file, they load in under a second and all processes share them through
the page cache. Such a file belongs to one artifact, one ONNX Runtime and one instruction set, so it is kept on the
host, not in the artifact.
"""

import logging
import shutil
from pathlib import Path

import tokenizers

from rankrt.artifact.hashes import FileHashes
from rankrt.artifact.manifest import Artifact, InstructionSet, Variant
from rankrt.backends.session import import_onnxruntime, open_session, session_options
from rankrt.errors import ArtifactError, CacheError
from rankrt.files.cache import HostCache, Key, Use
from rankrt.host.cpu import Machine
from rankrt.text.unigram import UnigramTokenizer

_GRAPH, _WEIGHTS = "model{}.onnx", "weights{}.data"
# Smaller tensors stay in the graph file, which is read at once.
_MIN_EXTERNAL_BYTES = 1024

_logger = logging.getLogger("rankrt")


class PreparedModels:
    """The prepared models and vocabularies of a host."""

    def __init__(self, cache: HostCache | None = None) -> None:
        """Take a cache, or this user's. Raises CacheError if there is no place for one."""
        self.cache = cache or HostCache()

    @property
    def folder(self) -> Path:
        """Where the entries are."""
        return self.cache.folder / "prepared"

    def key(self, artifact: Artifact, variant: Variant, machine: Machine) -> Key:
        """Say what a variant would be prepared from on this machine."""
        return Key(
            kind="prepared",
            name=artifact.manifest.name,
            variant=variant.name,
            depends_on={
                "engine": f"onnxruntime {import_onnxruntime().__version__}",
                "processor": " ".join((machine.architecture, *machine.instructions)),
                "artifact": artifact.identity,
            },
        )

    def graphs(self, key: Key, artifact: Artifact, variant: Variant, hashes: FileHashes) -> tuple[list[Path], Use]:
        """Return the prepared graphs of a variant; make them, once per host, if there are no sound ones yet.

        Making it takes about 10 s per GB. Raises ArtifactError if a file of the artifact is not what was exported, and
        CacheError if the cache cannot be written or the disk is too small.
        """

        def write(folder: Path) -> None:
            _logger.info("preparing %s for this processor, once (%s)", artifact.manifest.name, self.folder)
            artifact.check_hashes(variant.files, hashes.sha256)
            self._check_space(folder, artifact, variant)
            for number, name in enumerate(variant.graphs):
                _pack(artifact.path(name), folder, number, variant.instruction_set)

        use = self.cache.make(key, write)
        return _graphs_in(use, variant), use

    def find(self, artifact: Artifact, variant: Variant, machine: Machine) -> tuple[list[Path], Use] | None:
        """Return the prepared graphs of a variant if there are sound ones."""
        use = self.cache.find(self.key(artifact, variant, machine))
        return None if use is None else (_graphs_in(use, variant), use)

    def tokenizer(self, artifact: Artifact) -> UnigramTokenizer | None:
        """Return the artifact's tokenizer over a mapped vocabulary, or None if it is not of the kind that has one.

        The caller has compared the file with the manifest. Raises CacheError if the cache cannot be written.
        """
        name = artifact.manifest.tokenizer
        key = Key(
            kind="prepared",
            name=artifact.manifest.name,
            variant="vocabulary",
            depends_on={
                "engine": f"tokenizers {tokenizers.__version__}",
                "tokenizer": artifact.manifest.files[name].sha256,
            },
        )
        if (use := self.cache.find(key)) is None:
            if (tokenizer := UnigramTokenizer.read(artifact.path(name))) is None:
                return None
            use = self.cache.make(key, tokenizer.save)
        opened = UnigramTokenizer.open(use.folder)
        use.until_gone(opened)
        return opened

    def _check_space(self, folder: Path, artifact: Artifact, variant: Variant) -> None:
        """Raise CacheError if the disk, or the limit of the cache, is too small for a prepared model."""
        n_bytes = sum(artifact.manifest.files[name].n_bytes for name in variant.files)
        needed, free = int(n_bytes * variant.key.row.prepared_growth), shutil.disk_usage(folder).free
        takes = f"the prepared model takes {needed / 1e9:.1f} GB"
        if free < needed:
            raise CacheError(f"{folder.parent} has {free / 1e9:.1f} GB free, {takes}")
        if self.cache.limit is not None and self.cache.limit < needed:
            raise CacheError(f"RANKRT_CACHE_MAX is {self.cache.limit / 1e9:.1f} GB, {takes}")


def _graphs_in(use: Use, variant: Variant) -> list[Path]:
    return [use.folder / _GRAPH.format(number or "") for number in range(len(variant.graphs))]


def _pack(graph: Path, folder: Path, number: int, instruction_set: InstructionSet | None) -> None:
    options = session_options(1, instruction_set=instruction_set)
    options.optimized_model_filepath = str(folder / _GRAPH.format(number or ""))
    settings = {
        "session.save_external_prepacked_constant_initializers": "1",
        "session.optimized_model_external_initializers_file_name": _WEIGHTS.format(number or ""),
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_MIN_EXTERNAL_BYTES),
    }
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    try:
        open_session(graph, options)
    except ArtifactError as error:  # a graph that cannot be loaded is refused when it is opened as it is
        raise CacheError(f"ONNX Runtime could not write a prepared model: {error.__cause__ or error}") from error
    if not Path(options.optimized_model_filepath).exists():
        raise CacheError(f"ONNX Runtime wrote no prepared model for {graph}")
