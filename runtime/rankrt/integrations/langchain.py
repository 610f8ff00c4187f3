"""LangChain's interfaces over rankrt: a cross encoder, and a document compressor that ranks."""

from collections.abc import Sequence
from typing import Any

from rankrt.errors import InputError
from rankrt.integrations.frameworks import framework, loaded
from rankrt.ranking import Ranking
from rankrt.reranker import Reranker

with framework("langchain-core", least="1.0", extra="langchain"):
    from langchain_core.callbacks import Callbacks
    from langchain_core.cross_encoders import BaseCrossEncoder
    from langchain_core.documents import BaseDocumentCompressor, Document
    from pydantic import ConfigDict, Field, PrivateAttr


class RankrtCrossEncoder(BaseCrossEncoder):
    """Scores pairs of texts, for instance for `CrossEncoderReranker`. Scores are logits, or their sigmoid."""

    def __init__(self, model: str | Reranker, *, normalize: bool = False, **load_options: Any) -> None:
        """Take a loaded reranker, or load the model of a folder or a hub id, with the options of `Reranker.load`."""
        self.reranker = loaded(model, load_options)
        self.normalize = normalize

    def score(self, text_pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return a score for each (query, passage), in their order."""
        scores: list[float] = self.reranker.score(text_pairs, normalize=self.normalize).tolist()
        return scores

    async def ascore(self, text_pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the same without blocking the event loop."""
        scores: list[float] = (await self.reranker.ascore(text_pairs, normalize=self.normalize)).tolist()
        return scores


class RankrtRerank(BaseDocumentCompressor):
    """Keeps the documents that answer a query best, best first. A copy of each has `relevance_score` in its metadata.

    model         a folder, a hub id or a loaded reranker
    top_n         how many documents are kept; None keeps all
    normalize     whether scores are the sigmoid of the logits, from 0 to 1
    load_options  options of `Reranker.load`
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: Any
    top_n: int | None = Field(default=3, ge=1)
    normalize: bool = True
    load_options: dict[str, Any] = Field(default_factory=dict)
    _reranker: Reranker = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Load the model."""
        self._reranker = loaded(self.model, self.load_options)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Return the best documents. `callbacks` are not called, as nothing here streams."""
        return _chosen(documents, self._reranker.rank(query, _texts(documents), **self._options()))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Return the best documents without blocking the event loop; a cancelled task stops computing."""
        return _chosen(documents, await self._reranker.arank(query, _texts(documents), **self._options()))

    def _options(self) -> dict[str, Any]:
        return {"top_n": self.top_n, "normalize": self.normalize}


def _texts(documents: Sequence[Document]) -> list[str]:
    for i, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InputError(
                f"document {i} is {type(document).__name__}, not a LangChain Document; pass Document(page_content=...)"
            )
    return [document.page_content for document in documents]


def _chosen(documents: Sequence[Document], ranking: Ranking) -> list[Document]:
    """Return copies of the documents of a ranking, in its order."""
    return [
        documents[hit.index].model_copy(
            update={"metadata": {**documents[hit.index].metadata, "relevance_score": hit.score}}
        )
        for hit in ranking
    ]
