"""Rerankers compiled for ONNX Runtime: export once, score anywhere, without torch.

from rankrt import Reranker

reranker = Reranker.load("./bge-m3")
for hit in reranker.rank("what is panda?", passages, top_n=3):
    print(hit.index, hit.score, hit.document)
"""

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
