"""Where an artifact comes from: a folder, a repository of the hub, or a checkpoint that is exported once."""

import hashlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rankrt.artifact import MANIFEST, Artifact, Variant, open_artifact
from rankrt.atomic import cache_folder, made_once
from rankrt.errors import ArtifactError, InputError, MissingExtra
from rankrt.extras import exporter

_CHECKPOINT = "config.json"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_logger = logging.getLogger("rankrt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """Which state of a hub repository is meant, and where downloads are kept (None: huggingface_hub's own choice)."""

    revision: str | None = None
    cache_dir: str | Path | None = None

    def fetch(self, repository: str, patterns: list[str]) -> Path:
        """Return the local folder with those files of a repository that match, downloaded if they are not there.

        Offline mode (HF_HUB_OFFLINE) is honoured. Raises ArtifactError if the repository cannot be had.
        """
        from huggingface_hub import snapshot_download  # 0.3 s, needed by nobody who loads a folder

        try:
            return Path(
                snapshot_download(repository, revision=self.revision, cache_dir=self.cache_dir, allow_patterns=patterns)
            )
        except Exception as error:  # offline, unknown, private, network: all say it well and share no base
            at = f"{repository}@{self.revision}" if self.revision else repository
            raise ArtifactError(f"{at} is no folder here and could not be fetched from the hub: {error}") from error


def find_artifact(
    source: str | Path, choose: Callable[[Artifact], Variant], hub: Hub | None = None
) -> tuple[Artifact, Variant]:
    """Return the artifact that a source names, and the variant that is chosen of it, with all files it needs.

    Raises ArtifactError if the source is neither an artifact nor a checkpoint, MissingExtra if it is a checkpoint and
    the export extra is not installed, and what `choose` raises.
    """
    folder = folder_of(source)
    if folder.is_dir():
        if hub is not None and hub.revision is not None:
            raise InputError(
                f"revision={hub.revision!r} is a state of a hub repository, but {source} is a folder; drop it"
            )
        artifact = open_artifact(folder if (folder / MANIFEST).exists() else _exported_folder(folder))
        return artifact, choose(artifact)
    if folder.exists() or not _is_hub_id(str(source)):
        raise ArtifactError(f"{source} is no folder, and no hub id of the form owner/name")
    return _from_hub(str(source), hub or Hub(), choose)


def folder_of(source: object) -> Path:
    """Return the folder that a source would be. Raises ArtifactError for what cannot be a name on any disk or hub."""
    if not isinstance(source, str | os.PathLike):
        raise ArtifactError(f"{source!r:.80} is not a model: expected a folder, or a hub id of the form owner/name")
    text = os.fspath(source)
    if not isinstance(text, str) or not text.strip() or _CONTROL.search(text):
        raise ArtifactError(f"{text!r:.80} is not a model: a name has letters, and no line break or NUL")
    folder = Path(text)
    try:
        folder = folder.expanduser()
        folder.is_dir()
    except RuntimeError as error:  # ~ without a home
        raise ArtifactError(f"{text!r:.80} is not a model: {error}") from error
    except OSError as error:
        raise ArtifactError(f"{text!r:.80} is not a model: {error.strerror}") from error
    return folder


def _from_hub(repository: str, hub: Hub, choose: Callable[[Artifact], Variant]) -> tuple[Artifact, Variant]:
    folder = hub.fetch(repository, [MANIFEST, _CHECKPOINT])
    if not (folder / MANIFEST).exists():
        artifact = open_artifact(_exported(repository, hub, version=folder.name))
        return artifact, choose(artifact)
    artifact = open_artifact(folder)
    variant = choose(artifact)
    hub.fetch(repository, [artifact.manifest.tokenizer, *variant.files])
    return artifact, variant


def _exported_folder(folder: Path) -> Path:
    """Return the artifact of a local checkpoint; a changed file makes it another checkpoint."""
    if not (folder / _CHECKPOINT).exists():
        raise ArtifactError(f"{folder} is no artifact (no {MANIFEST}) and no checkpoint (no {_CHECKPOINT})")
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.iterdir()) if f.is_file()]
    return _exported(str(folder.resolve()), Hub(), version=repr(files))


def _exported(source: str, hub: Hub, *, version: str) -> Path:
    """Return the artifact of a checkpoint from the cache, where it is put by exporting it the first time."""
    digest = hashlib.sha256(f"{source}@{version}".encode()).hexdigest()
    folder = cache_folder() / "exported" / f"{Path(source).name}-{digest[:16]}"
    if folder.exists():
        return folder
    try:
        export = exporter()
    except MissingExtra as error:
        raise MissingExtra(
            f"{source} is a checkpoint, not an artifact. On a machine with pip install 'rankrt[cpu,export]' make one:"
            f" rankrt export {source} ./{Path(source).name}"
        ) from error
    _logger.warning("%s is a checkpoint: exporting it once into %s", source, folder)
    return made_once(
        folder, lambda unfinished: export(source, unfinished, revision=hub.revision, cache_dir=hub.cache_dir)
    )


def _is_hub_id(name: str) -> bool:
    owner, _, rest = name.partition("/")
    return bool(owner and rest) and "/" not in rest and not name.startswith((".", "~"))
