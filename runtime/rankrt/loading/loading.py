"""How a reranker is loaded, kept so that another process can load the same one again."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import msgspec

from rankrt.artifact.manifest import INSTRUCTION_SETS, PRECISIONS, Artifact, InstructionSet, Precision, Variant
from rankrt.artifact.source import Hub, find_artifact, local_folder
from rankrt.backends import Backend
from rankrt.backends.cpu_causal import OrtCausal
from rankrt.errors import ArtifactError, DeviceError, InputError
from rankrt.host.cpu import Machine, this_machine
from rankrt.host.device import Device, check_heeded
from rankrt.loading.choose import device_of, place
from rankrt.loading.open import Variants, open_tokenizer, open_variant
from rankrt.options import check_choice, check_flag, check_text, check_whole
from rankrt.text.pairs import PairTokenizer

# More threads than cores are slower and still right; so many more are a slip of the keyboard.
_MOST_THREADS_PER_CPU = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a reranker is made of."""

    artifact: Artifact
    variant: Variant
    tokenizer: PairTokenizer
    variants: Variants


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """A source, and the options of `Reranker.load` that are no rules and no depth."""

    source: str | Path
    device: str = "auto"
    precision: Precision | Literal["auto"] = "auto"
    instruction_set: InstructionSet | None = None
    n_threads: int | None = None
    revision: str | None = None
    cache_dir: str | Path | None = None
    prepare: bool = True
    gpu_memory_gb: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no host could honour."""
        check_text("device", self.device)
        check_choice("precision", self.precision, ("auto", *PRECISIONS))
        check_choice("instruction_set", self.instruction_set, INSTRUCTION_SETS, none_is="the one for this processor")
        check_whole("n_threads", self.n_threads, least=1, none_is="all usable cores")
        check_text("revision", self.revision, none_is="the newest")
        check_flag("prepare", self.prepare)
        if self.cache_dir is not None and not isinstance(self.cache_dir, str | os.PathLike):
            raise InputError(f"cache_dir={self.cache_dir!r:.80}, expected a folder (or None for huggingface_hub's own)")
        if (limit := self.gpu_memory_gb) is not None and not _is_positive(limit):
            raise InputError(f"gpu_memory_gb={limit!r:.80}, expected more than 0 (or None for what is needed)")
        if (asked := Device.parse(self.device)) is not None:
            self._check_heeded(asked)

    def open(self) -> Loaded:
        """Find the artifact, choose its variant and open both. Raises ArtifactError, DeviceError or InputError."""
        asked, machine = Device.parse(self.device), this_machine()
        self._check_threads(machine)
        artifact, variant = self._find(self.precision, asked, machine)
        where = device_of(variant, asked)
        self._check_heeded(where)
        if self.instruction_set is not None and variant.instruction_set is None:
            raise DeviceError(
                f"{variant.name} is for any processor; leave instruction_set={self.instruction_set!r} out"
            )
        n_cores = machine.cores.n if where.is_gpu else 1
        text_tokenizer = open_tokenizer(artifact, prepare=self.prepare, n_cores=n_cores)
        return Loaded(
            artifact=artifact,
            variant=variant,
            tokenizer=PairTokenizer(text_tokenizer, artifact.manifest.template),
            variants=Variants(
                lambda wanted: self._find(wanted, where, machine)[1], self._opener(artifact, where, machine), where
            ),
        )

    def again(self, variant: Variant, device: Device) -> "Loading":
        """Return how to load exactly what these options chose here."""
        return replace(
            self,
            device=str(device),
            precision=variant.precision,
            instruction_set=variant.instruction_set,
        )

    def _find(
        self, precision: Precision | Literal["auto"], device: Device | None, machine: Machine
    ) -> tuple[Artifact, Variant]:
        hub = Hub(revision=self.revision, cache_dir=self.cache_dir)
        return find_artifact(
            self.source, lambda found: place(found, device, precision, machine, self.instruction_set), hub
        )

    def _opener(self, artifact: Artifact, device: Device, machine: Machine) -> Callable[[Variant], Backend | OrtCausal]:
        return lambda wanted: open_variant(
            artifact,
            wanted,
            device,
            n_threads=self.n_threads or machine.cores.n,
            prepare=self.prepare,
            gpu_memory_bytes=None if self.gpu_memory_gb is None else int(self.gpu_memory_gb * 2**30),
        )

    def _check_threads(self, machine: Machine) -> None:
        n_cpus = os.cpu_count() or machine.cores.n
        if self.n_threads is not None and self.n_threads > _MOST_THREADS_PER_CPU * n_cpus:
            raise InputError(
                f"n_threads={self.n_threads}, but this host has {n_cpus} CPUs, of which {machine.cores.n} cores are"
                " worth a thread; drop n_threads to use those"
            )

    def _check_heeded(self, device: Device) -> None:
        names = ("gpu_memory_gb", "n_threads", "instruction_set")
        check_heeded(self.device, device, **{name: getattr(self, name) for name in names})


OPTIONS = tuple(field.name for field in fields(Loading) if field.name != "source")


def rooted(source: str | Path) -> str | Path:
    """Return the same source, a folder by its whole path, so that it is found from any working directory."""
    folder = local_folder(source)
    return source if folder is None else folder.absolute()


def fingerprint(artifact: Artifact, variant: Variant) -> str:
    """Return a digest of all that a variant's scores come from: its files, the tokenizer and the words around a pair.

    Two exports of one checkpoint have the same, though what they measured on the way may differ.
    """
    manifest = artifact.manifest
    names = (manifest.tokenizer, *variant.files)
    parts = (manifest.template, manifest.max_length, [manifest.files[name].sha256 for name in names])
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def open_again(loading: Loading, expected: str) -> Loaded:
    """Open what was pickled. Raises ArtifactError if it is not here, or not the same any more."""
    try:
        loaded = loading.open()
    except ArtifactError as error:
        raise ArtifactError(
            f"a pickled reranker is loaded again from where it came, which fails here: {error}. Put it at the same"
            " place on every host, or load it from the hub"
        ) from error
    if fingerprint(loaded.artifact, loaded.variant) != expected:
        raise ArtifactError(
            f"{loading.source} has changed since this reranker was pickled: its {loaded.variant.name} has other files."
            " Load it anew, or name a revision of the hub"
        )
    return loaded


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
