"""Haystack's interface over rankrt: a ranker component for pipelines."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankrt.errors import InputError
from rankrt.integrations.frameworks import framework, loaded
from rankrt.options import check_whole
from rankrt.ranking import Ranking
from rankrt.reranker import Reranker

with framework("haystack-ai", least="3.0", extra="haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict


@component
class RankrtRanker:
    """Ranks documents by how well they answer a query, and keeps the best. The given documents stay as they are.

    A document's text is its content after the metadata fields that are named; without content it is those alone. Of
    documents with one id, the one with the highest score is ranked.
    """

    def __init__(
        self,
        *,
        model: str | Path,
        top_k: int = 10,
        query_prefix: str = "",
        query_suffix: str = "",
        document_prefix: str = "",
        document_suffix: str = "",
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        scale_score: bool = True,
        score_threshold: float | None = None,
        load_options: dict[str, Any] | None = None,
    ) -> None:
        """Describe the ranker; `warm_up` loads its model.

        :param model: A folder or a hub id.
        :param top_k: The most documents that are returned.
        :param query_prefix: Text before the query.
        :param query_suffix: Text after the query.
        :param document_prefix: Text before each document.
        :param document_suffix: Text after each document.
        :param meta_fields_to_embed: Metadata that stands before the content.
        :param embedding_separator: What stands between metadata and content.
        :param scale_score: Whether scores are the sigmoid of the logits, from 0 to 1.
        :param score_threshold: Documents with a lower score are left out.
        :param load_options: Options of `Reranker.load`.
        """
        check_whole("top_k", top_k, least=1)
        if not isinstance(model, str | Path):
            raise InputError(
                f"model is {type(model).__name__}, expected a folder or a hub id, which a pipeline can save"
            )
        self.model = str(model)
        self.top_k = top_k
        self.query_prefix = query_prefix
        self.query_suffix = query_suffix
        self.document_prefix = document_prefix
        self.document_suffix = document_suffix
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator
        self.scale_score = scale_score
        self.score_threshold = score_threshold
        self.load_options = load_options or {}
        self._reranker: Reranker | None = None

    def warm_up(self) -> None:
        """Load the model, if it is not loaded."""
        self._loaded()

    def close(self) -> None:
        """Release the model; `warm_up` loads it again."""
        if self._reranker is not None:
            self._reranker.close()
            self._reranker = None

    def to_dict(self) -> dict[str, Any]:
        """Return what the ranker was made of."""
        description: dict[str, Any] = default_to_dict(
            self,
            model=self.model,
            top_k=self.top_k,
            query_prefix=self.query_prefix,
            query_suffix=self.query_suffix,
            document_prefix=self.document_prefix,
            document_suffix=self.document_suffix,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
            scale_score=self.scale_score,
            score_threshold=self.score_threshold,
            load_options=self.load_options,
        )
        return description

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "RankrtRanker":
        """Make a ranker of what `to_dict` returned."""
        made: RankrtRanker = default_from_dict(cls, data)
        return made

    @component.output_types(documents=list[Document])
    def run(
        self,
        *,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        """Return the best documents, best first, each a copy with its score.

        :param query: What the documents are ranked by.
        :param documents: The documents.
        :param top_k: As in the constructor; it wins for this call.
        :param scale_score: As in the constructor; it wins for this call.
        :param score_threshold: As in the constructor; it wins for this call.
        """
        unique = _without_duplicates(documents)
        ranking = self._loaded().rank(self._query(query), self._texts(unique), **self._options(top_k, scale_score))
        return {"documents": self._chosen(unique, ranking, score_threshold)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        *,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        """Return what `run` does, without blocking the event loop; a cancelled task stops computing.

        :param query: What the documents are ranked by.
        :param documents: The documents.
        :param top_k: As in the constructor; it wins for this call.
        :param scale_score: As in the constructor; it wins for this call.
        :param score_threshold: As in the constructor; it wins for this call.
        """
        unique = _without_duplicates(documents)
        options = self._options(top_k, scale_score)
        ranking = await self._loaded().arank(self._query(query), self._texts(unique), **options)
        return {"documents": self._chosen(unique, ranking, score_threshold)}

    def _loaded(self) -> Reranker:
        if self._reranker is None:
            self._reranker = loaded(self.model, self.load_options)
        return self._reranker

    def _query(self, query: str) -> str:
        return self.query_prefix + query + self.query_suffix

    def _texts(self, documents: Sequence[Document]) -> list[str]:
        texts = []
        for document in documents:
            values = [document.meta.get(name) for name in self.meta_fields_to_embed]
            parts = [*(str(value) for value in values if value is not None), document.content or ""]
            texts.append(self.document_prefix + self.embedding_separator.join(parts) + self.document_suffix)
        return texts

    def _options(self, top_k: int | None, scale_score: bool | None) -> dict[str, Any]:
        check_whole("top_k", top_k, least=1, none_is="the constructor's")
        return {
            "top_n": self.top_k if top_k is None else top_k,
            "normalize": self.scale_score if scale_score is None else scale_score,
        }

    def _chosen(self, documents: Sequence[Document], ranking: Ranking, threshold: float | None) -> list[Document]:
        """Return copies of the documents of a ranking with their scores, in its order."""
        least = self.score_threshold if threshold is None else threshold
        return [
            replace(documents[hit.index], score=hit.score) for hit in ranking if least is None or hit.score >= least
        ]


def _without_duplicates(documents: Sequence[Document]) -> list[Document]:
    """Return the documents; of those with one id, the one with the highest score in the place of the first."""
    best: dict[str, Document] = {}
    for i, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InputError(
                f"document {i} is {type(document).__name__}, not a Haystack Document; pass Document(content=...)"
            )
        known = best.get(document.id)
        if known is None or _rated(document) > _rated(known):
            best[document.id] = document
    return list(best.values())


def _rated(document: Document) -> float:
    return float("-inf") if document.score is None else document.score
