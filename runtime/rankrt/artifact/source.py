"""Where an artifact comes from: a folder, a repository of the hub, or a checkpoint that is exported once."""

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from rankrt.artifact.calibration import CALIBRATION
from rankrt.artifact.hashes import FileHashes
from rankrt.artifact.manifest import FORMAT_VERSION, MANIFEST, Artifact, open_artifact
from rankrt.errors import ArtifactError, CacheError, InputError, MissingExtra
from rankrt.extras import exporter
from rankrt.files.cache import HostCache, Key
from rankrt.files.rights import exists, home_folder, this_user, unreadable

_CHECKPOINT, _MODULES = "config.json", "modules.json"
# What an export may read of a checkpoint's folder: configurations, weights, tokenizers, code. The rest of what people
# keep there (README.md, logs, ONNX files of others) has no part in it.
_SUFFIXES = {".json", ".safetensors", ".bin", ".model", ".tiktoken", ".jinja", ".py"}
_NAMES = {"merges.txt", "vocab.txt"}
# Trainers leave these under the same suffixes.
_UNREAD = {"training_args.bin", "optimizer.bin", "scheduler.bin", "trainer_state.json"}
# What huggingface_hub looks at before it asks for the home folder.
_HUB_FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
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
        if self.cache_dir is None and home_folder() is None and not any(map(os.environ.get, _HUB_FOLDERS)):
            # huggingface_hub would make a folder called "~" here.
            raise ArtifactError(
                f"{repository} does not exist here, and {this_user()} has no home folder to keep downloads in. Name a"
                " folder for them with HF_HOME"
            )
        from huggingface_hub import snapshot_download  # 0.3 s that loading a folder does not need

        try:
            return Path(
                snapshot_download(repository, revision=self.revision, cache_dir=self.cache_dir, allow_patterns=patterns)
            )
        except Exception as error:  # offline, unknown, private, network: all say it well and share no base
            at = f"{repository}@{self.revision}" if self.revision else repository
            raise ArtifactError(f"{at} does not exist here and could not be fetched from the hub: {error}") from error


class Chosen(Protocol):
    """The part of an artifact that was chosen: a variant, by itself or with the place where it runs."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it needs."""
        ...


_Chosen = TypeVar("_Chosen", bound=Chosen)


def find_artifact(source: str | Path, choose: Callable[[Artifact], _Chosen], hub: Hub | None = None) -> _Chosen:
    """Find the artifact that a source names, and return what is chosen of it, with all files that this needs.

    Raises ArtifactError if the source is neither an artifact nor a checkpoint, MissingExtra if it is a checkpoint and
    the export extra is not installed, CacheError if there is no place to export it to, and what `choose` raises.
    """
    if (folder := local_folder(source)) is not None:
        if hub is not None and hub.revision is not None:
            raise InputError(
                f"revision={hub.revision!r} is a state of a hub repository, but {source} is a folder; drop it"
            )
        artifact = open_artifact(folder) if _has(folder, MANIFEST) else _exported_folder(folder)
        return choose(artifact)
    if not is_hub_id(str(source)):
        raise ArtifactError(
            f"{source} does not exist and is not a hub id (owner/name). To create it:"
            f" rankrt export BAAI/bge-reranker-v2-m3 {source}"
        )
    return _from_hub(str(source), hub or Hub(), choose)


def local_folder(source: object) -> Path | None:
    """Return the folder of that name, or None if there is nothing. Raises ArtifactError for anything else."""
    if not isinstance(source, str | os.PathLike):
        raise ArtifactError(f"{source!r:.80} is not a model: expected a folder, or a hub id (owner/name)")
    text = os.fspath(source)
    if not isinstance(text, str) or not text.strip() or _CONTROL.search(text):
        raise ArtifactError(f"{text!r:.80} is not a model: a name has letters, and no line break or NUL")
    try:
        folder = Path(text).expanduser()
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArtifactError(unreadable(Path(text), error)) from error
    except (ValueError, RuntimeError) as error:  # a lone surrogate; the home folder of an unknown user
        raise ArtifactError(f"{text!r:.80} is not a model: {error}") from error
    if not is_folder:
        raise ArtifactError(f"{text} is a file; expected a folder with an artifact or a checkpoint")
    return folder


def _has(folder: Path, name: str) -> bool:
    try:
        return exists(folder / name)
    except OSError as error:
        raise ArtifactError(unreadable(folder, error)) from error


def _from_hub(repository: str, hub: Hub, choose: Callable[[Artifact], _Chosen]) -> _Chosen:
    folder = hub.fetch(repository, [MANIFEST, CALIBRATION, _CHECKPOINT])
    if not (folder / MANIFEST).exists():
        with _as_checkpoint(repository):
            artifact = _exported(repository, HostCache(), hub, content=f"{repository}@{folder.name}")
        return choose(artifact)
    artifact = open_artifact(folder)
    chosen = choose(artifact)
    hub.fetch(repository, [artifact.manifest.tokenizer, *chosen.files])
    return chosen


def _exported_folder(folder: Path) -> Artifact:
    """Return the artifact of a local checkpoint. Other content makes it another checkpoint; times do not."""
    if not _has(folder, _CHECKPOINT):
        raise ArtifactError(f"{folder} is neither an artifact (no {MANIFEST}) nor a checkpoint (no {_CHECKPOINT})")
    with _as_checkpoint(str(folder)):
        cache = HostCache()
        return _exported(str(folder.resolve()), cache, Hub(), content=_content_of(folder, cache))


def _content_of(folder: Path, cache: HostCache) -> str:
    """Return the hash of all files of a checkpoint that its export may depend on."""
    digest = hashlib.sha256()
    for part in ("", *_module_folders(folder)):
        hashes = FileHashes(folder / part, cache)
        try:
            for path in sorted((folder / part).iterdir()):
                if (path.suffix in _SUFFIXES or path.name in _NAMES) and path.name not in _UNREAD and path.is_file():
                    digest.update(f"{part}/{path.name} {hashes.sha256(path.name)}\n".encode())
        except OSError as error:
            raise ArtifactError(unreadable(Path(error.filename or folder), error)) from error
        hashes.save()
    return digest.hexdigest()


def _module_folders(folder: Path) -> list[str]:
    """Return the folders inside that sentence-transformers' modules.json names."""
    try:
        modules = json.loads((folder / _MODULES).read_bytes())
        paths = [module.get("path") for module in modules if isinstance(module, dict)]
    except (OSError, ValueError, TypeError):  # the export says what is wrong with it
        return []
    inside = [path for path in paths if isinstance(path, str) and path and Path(path).name == path]
    return sorted(path for path in inside if path != ".." and (folder / path).is_dir())


def _exported(source: str, cache: HostCache, hub: Hub, *, content: str) -> Artifact:
    """Return the artifact of a checkpoint from the cache, where it is put by exporting it the first time."""
    from importlib.metadata import version  # 12 ms, and an artifact's folder needs no version

    key = Key(
        kind="exported",
        name=Path(source).name,
        variant="fp32",
        depends_on={
            "engine": f"rankrt {version('rankrt')}",
            "artifact format": str(FORMAT_VERSION),
            "checkpoint": content,
        },
    )

    def write(folder: Path) -> None:
        try:
            export(source, folder, revision=hub.revision, cache_dir=hub.cache_dir)
        except OSError as error:
            if error.filename is not None and folder not in Path(error.filename).parents:
                raise ArtifactError(unreadable(Path(error.filename), error)) from error
            raise

    if (use := cache.find(key)) is None:
        try:
            export = exporter()
        except MissingExtra as error:
            raise MissingExtra(
                f"{source} is a checkpoint, not an artifact. On a machine with pip install 'rankrt[cpu,export]' make"
                f" one: rankrt export {source} ./{Path(source).name}"
            ) from error
        _logger.warning("%s is a checkpoint: exporting it once into %s", source, cache.path(key))
        use = cache.make(key, write)
    artifact = open_artifact(use.folder)
    use.until_gone(artifact)
    return artifact


@contextmanager
def _as_checkpoint(source: str) -> Iterator[None]:
    """Say why a checkpoint needs the cache, and how to do without."""
    try:
        yield
    except CacheError as error:
        raise CacheError(
            f"{source} is a checkpoint, which is exported into the cache: {error}. Or export it once yourself:"
            f" rankrt export {source} ./{Path(source).name}"
        ) from error


def is_hub_id(name: str) -> bool:
    """Tell whether a name has the form of a hub id, owner/name. A folder may have it, too."""
    owner, _, rest = name.partition("/")
    return bool(owner and rest) and "/" not in rest and not name.startswith((".", "~"))
