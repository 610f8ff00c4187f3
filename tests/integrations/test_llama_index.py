"""LlamaIndex's query engines and postprocessors with a reranker of ours in them."""

import asyncio
from typing import Any

import pytest

from rankrt import InputError, Reranker
from rankrt.artifact.manifest import Artifact

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
adapters = pytest.importorskip("rankrt.integrations.llama_index")
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler  # noqa: E402
from llama_index.core.instrumentation import get_dispatcher  # noqa: E402
from llama_index.core.instrumentation.event_handlers import BaseEventHandler  # noqa: E402
from llama_index.core.retrievers import BaseRetriever  # noqa: E402
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    texts = ["two", "three", "zero"]
    return [NodeWithScore(node=TextNode(text=text, id_=f"n{i}"), score=0.1 * i) for i, text in enumerate(texts)]


def test_the_best_nodes_come_first_with_their_scores(reranker: Reranker, nodes: list[NodeWithScore]):
    postprocessor = adapters.RankrtRerank(model=reranker, top_n=2)
    found = postprocessor.postprocess_nodes(nodes, query_str="one")
    assert [node.node.id_ for node in found] == ["n1", "n0"]
    assert found[0].score == pytest.approx(0.98201376)
    assert [node.score for node in nodes] == [0.0, 0.1, 0.2], "the given nodes stay as they are"
    again = asyncio.run(postprocessor.apostprocess_nodes(nodes, query_bundle=QueryBundle("one")))
    assert again == found
    assert postprocessor.postprocess_nodes([], query_str="one") == []


def test_logits_all_nodes_and_the_retriever_s_score_are_a_choice(artifact: Artifact, nodes: list[NodeWithScore]):
    postprocessor = adapters.RankrtRerank(
        model=str(artifact.folder),
        top_n=None,
        normalize=False,
        keep_retrieval_score=True,
        load_options={"max_length": 32},
    )
    found = postprocessor.postprocess_nodes(nodes, query_str="one")
    assert [(node.score, node.node.metadata) for node in found] == [
        (4.0, {"retrieval_score": 0.1}),
        (3.0, {"retrieval_score": 0.0}),
        (1.0, {"retrieval_score": 0.2}),
    ]
    assert nodes[1].node.metadata == {}


def test_metadata_is_read_unless_it_is_excluded_from_embedding(reranker: Reranker):
    def node(**options: Any) -> NodeWithScore:
        return NodeWithScore(
            node=TextNode(text="two", metadata={"t": "four"}, text_template="{metadata_str} {content}", **options)
        )

    postprocessor = adapters.RankrtRerank(model=reranker, normalize=False)
    nodes = [node(metadata_template="{value}"), node(excluded_embed_metadata_keys=["t"])]
    assert [found.score for found in postprocessor.postprocess_nodes(nodes, query_str="one")] == [7.0, 3.0]


def test_a_node_without_text_is_scored_as_empty(reranker: Reranker):
    nodes = [NodeWithScore(node=TextNode(text="")), NodeWithScore(node=ImageNode(image_url="x.png"))]
    found = adapters.RankrtRerank(model=reranker, normalize=False).postprocess_nodes(nodes, query_str="one")
    assert [node.score for node in found] == [1.0, 1.0]


def test_a_retriever_s_nodes_pass_through_it(reranker: Reranker, nodes: list[NodeWithScore]):
    from llama_index.core import Settings
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine

    class All(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return nodes

    Settings.llm = MockLLM()  # the engine wants one, even if its answers have no text
    engine = RetrieverQueryEngine.from_args(
        All(),
        response_mode="no_text",
        node_postprocessors=[adapters.RankrtRerank(model=reranker, top_n=1)],
    )
    assert [node.text for node in engine.query("one").source_nodes] == ["three"]
    assert [node.text for node in asyncio.run(engine.aquery("one")).source_nodes] == ["three"]


def test_events_and_callbacks_are_told(reranker: Reranker, nodes: list[NodeWithScore]):
    told: list[str] = []

    class Listener(BaseEventHandler):
        def handle(self, event: Any, **kwargs: Any) -> None:
            told.append(event.class_name())

    listener = Listener()
    get_dispatcher().add_event_handler(listener)
    try:
        debug = LlamaDebugHandler(print_trace_on_end=False)
        postprocessor = adapters.RankrtRerank(model=reranker, callback_manager=CallbackManager([debug]))
        postprocessor.postprocess_nodes(nodes, query_str="one")
    finally:
        get_dispatcher().event_handlers.remove(listener)
    assert told == ["ReRankStartEvent", "ReRankEndEvent"]
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 1


def test_it_is_serialized_by_the_name_of_its_model(artifact: Artifact, nodes: list[NodeWithScore]):
    postprocessor = adapters.RankrtRerank(model=str(artifact.folder), top_n=1)
    data = postprocessor.to_dict()
    assert (data["class_name"], data["model"], data["top_n"]) == ("RankrtRerank", str(artifact.folder), 1)
    again = adapters.RankrtRerank.from_dict(data)
    assert [node.text for node in again.postprocess_nodes(nodes, query_str="one")] == ["three"]


def test_what_cannot_be_ranked_is_named(reranker: Reranker, nodes: list[NodeWithScore]):
    postprocessor = adapters.RankrtRerank(model=reranker)
    with pytest.raises(InputError, match="there is no query; pass query_str or query_bundle"):
        postprocessor.postprocess_nodes(nodes)
    with pytest.raises(InputError, match="node 3 is str, not a NodeWithScore"):
        postprocessor.postprocess_nodes([*nodes, "two"], query_str="one")
    with pytest.raises(ValueError, match="top_n"):
        adapters.RankrtRerank(model=reranker, top_n=0)
