"""Rerankers compiled for ONNX Runtime: export once, score anywhere, without torch.

from rankrt import Reranker

reranker = Reranker.load("./bge-m3")
for hit in reranker.rank("what is panda?", passages, top_n=3):
    print(hit.index, hit.score, hit.document)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rankrt.errors import (
    ArtifactError,
    CacheError,
    ClosedError,
    DeviceError,
    ExportError,
    InputError,
    MissingExtra,
    RankrtError,
    ScoreError,
)
from rankrt.host import telemetry

if TYPE_CHECKING:
    from rankrt.ranking import Hit, Ranking
    from rankrt.reranker import Reranker
    from rankrt.text.options import Rules

telemetry.turn_off()

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "CacheError",
    "ClosedError",
    "DeviceError",
    "ExportError",
    "Hit",
    "InputError",
    "MissingExtra",
    "Ranking",
    "RankrtError",
    "Reranker",
    "Rules",
    "ScoreError",
    "__version__",
]

# Imported when they are first used: numpy and the tokenizers take 0.2 s, which `rankrt --help` does not need.
_LATER = {
    "Hit": "rankrt.ranking",
    "Ranking": "rankrt.ranking",
    "Reranker": "rankrt.reranker",
    "Rules": "rankrt.text.options",
}


def __getattr__(name: str) -> Any:
    """Import a name of the library when it is first used (PEP 562)."""
    if name not in _LATER:
        raise AttributeError(f"module 'rankrt' has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_LATER[name]), name)
    return found


def __dir__() -> list[str]:
    """Return the names that are there, imported or not."""
    return sorted({*globals(), *_LATER})
