"""How a reranker is loaded, kept so that another process can load the same one again."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import msgspec

from rankrt.artifact.manifest import Artifact, Precision, Variant
from rankrt.artifact.source import Hub, find_artifact, local_folder
from rankrt.backends import Backend
from rankrt.backends.cpu_causal import OrtCausal
from rankrt.errors import ArtifactError, DeviceError, InputError
from rankrt.host.cpu import Machine, this_machine
from rankrt.host.device import Device
from rankrt.loading.choose import device_of, place
from rankrt.loading.open import Variants, open_tokenizer, open_variant
from rankrt.options import LoadOptions
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
class Loading(LoadOptions):
    """A source, and how it is loaded."""

    source: str | Path

    def open(self) -> Loaded:
        """Find the artifact, choose its variant and open both. Raises ArtifactError, DeviceError or InputError."""
        asked, machine = Device.parse(self.device), this_machine()
        self._check_threads(machine)
        artifact, variant = self._find(self.precision, asked, machine)
        where = device_of(variant, asked)
        self.check_device(where)
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
            gpu_memory_bytes=self.gpu_memory_bytes,
        )

    def _check_threads(self, machine: Machine) -> None:
        n_cpus = os.cpu_count() or machine.cores.n
        if self.n_threads is not None and self.n_threads > _MOST_THREADS_PER_CPU * n_cpus:
            raise InputError(
                f"n_threads={self.n_threads}, but this host has {n_cpus} CPUs, of which {machine.cores.n} cores are"
                " worth a thread; drop n_threads to use those"
            )


OPTIONS = tuple(field.name for field in fields(LoadOptions))


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
