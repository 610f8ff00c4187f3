"""An artifact's tokenizer on this host: over a vocabulary in arrays where it can be, else the library's."""

import tokenizers

from rankrt.artifact.manifest import Artifact
from rankrt.errors import CacheError
from rankrt.files.cache import HostCache, Key
from rankrt.loading.prepared import find_cache, go_on_without
from rankrt.text.tokenizers import LibraryTokenizer, TextTokenizer
from rankrt.text.unigram import UnigramTokenizer

# Our own tokenizer keeps one core busy, the library's all of them. Of text in twelve languages they make 306,000 and
# 200,000 tokens a second and thread, measured on a machine that was busy; a large GPU takes more than half a million.
_LIBRARY_CORES = 4


def open_tokenizer(artifact: Artifact, *, prepare: bool, n_cores: int = 1) -> TextTokenizer:
    """Open an artifact's tokenizer: over a vocabulary in arrays, which are mapped if `prepare`, or the library's.

    `n_cores` are those that it is to keep busy, for a GPU: only the library keeps many busy. Ids are the same. Raises
    ArtifactError if the file is not the one that was exported.
    """
    name = artifact.manifest.tokenizer
    path = artifact.path(name)
    artifact.check_hashes([name])
    if n_cores >= _LIBRARY_CORES:
        return LibraryTokenizer.open(path)
    if prepare and (cache := find_cache()) is not None:
        try:
            return _mapped(artifact, cache) or LibraryTokenizer.open(path)
        except CacheError as error:
            go_on_without(error)
    return UnigramTokenizer.read(path) or LibraryTokenizer.open(path)


def _mapped(artifact: Artifact, cache: HostCache) -> UnigramTokenizer | None:
    """Return the tokenizer over a mapped vocabulary, which is written once, or None if it is not of that kind.

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
    if (use := cache.find(key)) is None:
        if (tokenizer := UnigramTokenizer.read(artifact.path(name))) is None:
            return None
        use = cache.make(key, tokenizer.save)
    opened = UnigramTokenizer.open(use.folder)
    use.until_gone(opened)
    return opened
