"""Search by an embedding model of sentence-transformers: cosine similarity over the whole corpus, exact."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankrt.arrays import Float32Array
from rankrt.errors import InputError
from rankrt_finetune.mining.found import Found, best


class Embedder:
    """Passages as vectors of length 1, kept in a file so that they are computed once."""

    def __init__(self, model: str, passages: Sequence[str], vectors: Path) -> None:
        """Load a model, and embed the passages unless the file of vectors is there. Raises InputError."""
        self._model = _load(model)
        if not vectors.exists():
            unfinished = vectors.with_name(f"{vectors.name}.unfinished")
            with unfinished.open("wb") as file:
                np.save(file, self._embed(passages, "document"))
            unfinished.replace(vectors)
        self._vectors: Float32Array = np.load(vectors, mmap_mode="r")

    def find(self, queries: Sequence[str], n: int) -> list[Found]:
        """Return for each query the n nearest passages, nearest first."""
        found = []
        for vector in self._embed(queries, "query"):
            similarity = self._vectors @ vector
            nearest = best(similarity, n)
            found.append(Found(passages=nearest, scores=similarity[nearest]))
        return found

    def similarity(self, query: str, passages: Sequence[str]) -> Float32Array:
        """Return the cosine similarity of passages, which need not be of the corpus, to a query."""
        return np.asarray(self._embed(passages, "document") @ self._embed([query], "query")[0])

    def _embed(self, texts: Sequence[str], side: str) -> Float32Array:
        encode = self._model.encode_query if side == "query" else self._model.encode_document
        return np.asarray(encode(list(texts), normalize_embeddings=True, show_progress_bar=False), np.float32)


def _load(model: str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(model)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--with {model} is neither bm25, nor an artifact, nor an embedding model of sentence-transformers:"
            f" {' '.join(str(error).split()):.200}"
        ) from error
