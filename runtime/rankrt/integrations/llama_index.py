"""LlamaIndex's interface over rankrt: a node postprocessor that ranks."""

from collections.abc import Sequence
from typing import Any

from rankrt.errors import InputError
from rankrt.integrations.frameworks import framework, loaded
from rankrt.ranking import Ranking
from rankrt.reranker import Reranker

with framework("llama-index-core", least="0.14", extra="llama-index"):
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

_dispatcher = get_dispatcher(__name__)


class RankrtRerank(BaseNodePostprocessor):
    """Keeps the nodes that answer a query best, best first. The nodes that are given stay as they are.

    A node's text is what an embedding would see: its content with the metadata that is not excluded from embedding.
    """

    model: Any = Field(description="A folder, a hub id or a loaded reranker.")
    top_n: int | None = Field(default=5, ge=1, description="How many nodes are kept; None keeps all.")
    normalize: bool = Field(default=True, description="Whether scores are the sigmoid of the logits, from 0 to 1.")
    keep_retrieval_score: bool = Field(
        default=False, description="Whether the score that a node had goes into its metadata, as retrieval_score."
    )
    load_options: dict[str, Any] = Field(default_factory=dict, description="Options of Reranker.load.")
    _reranker: Reranker = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Load the model."""
        super().model_post_init(context)
        self._reranker = loaded(self.model, self.load_options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex serializes."""
        return "RankrtRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, texts = self._begin(nodes, query_bundle)
        with self.callback_manager.event(CBEventType.RERANKING, payload=self._payload(nodes, query)) as event:
            chosen = self._chosen(nodes, self._reranker.rank(query, texts, **self._options()))
            event.on_end(payload={EventPayload.NODES: chosen})
        _dispatcher.event(ReRankEndEvent(nodes=chosen))
        return chosen

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, texts = self._begin(nodes, query_bundle)
        with self.callback_manager.event(CBEventType.RERANKING, payload=self._payload(nodes, query)) as event:
            chosen = self._chosen(nodes, await self._reranker.arank(query, texts, **self._options()))
            event.on_end(payload={EventPayload.NODES: chosen})
        _dispatcher.event(ReRankEndEvent(nodes=chosen))
        return chosen

    def _begin(self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None) -> tuple[str, list[str]]:
        """Announce the call, and return its query and texts."""
        if query_bundle is None:
            raise InputError("there is no query; pass query_str or query_bundle")
        texts = _texts(nodes)
        top_n = len(nodes) if self.top_n is None else self.top_n
        _dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=top_n, model_name=self._name()))
        return query_bundle.query_str, texts

    def _payload(self, nodes: list[NodeWithScore], query: str) -> dict[EventPayload, Any]:
        return {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self._name(),
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: self.top_n,
        }

    def _name(self) -> str:
        return self._reranker.artifact.manifest.name

    def _options(self) -> dict[str, Any]:
        return {"top_n": self.top_n, "normalize": self.normalize}

    def _chosen(self, nodes: list[NodeWithScore], ranking: Ranking) -> list[NodeWithScore]:
        """Return the nodes of a ranking with their new scores, in its order."""
        chosen = []
        for hit in ranking:
            node, retrieval_score = nodes[hit.index].node, nodes[hit.index].score
            if self.keep_retrieval_score:
                node = node.model_copy(update={"metadata": {**node.metadata, "retrieval_score": retrieval_score}})
            chosen.append(NodeWithScore(node=node, score=hit.score))
        return chosen


def _texts(nodes: Sequence[NodeWithScore]) -> list[str]:
    for i, node in enumerate(nodes):
        if not isinstance(node, NodeWithScore):
            raise InputError(
                f"node {i} is {type(node).__name__}, not a NodeWithScore; pass NodeWithScore(node=TextNode(text=...))"
            )
    return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
