"""LangChain's retrievers and compressors with a reranker of ours in them."""

import asyncio
from typing import Any

import pytest

from rankrt import InputError, Reranker
from rankrt.artifact.manifest import Artifact

core = pytest.importorskip("langchain_core", reason="langchain-core is not installed")
adapters = pytest.importorskip("rankrt.integrations.langchain")
from langchain_core.documents import Document  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = ["two", "three", "zero", ""]


@pytest.fixture
def documents() -> list[Document]:
    return [Document(page_content=text, metadata={"source": i}, id=f"d{i}") for i, text in enumerate(TEXTS)]


def test_a_cross_encoder_returns_floats_in_the_order_of_the_pairs(reranker: Reranker, artifact: Artifact):
    pairs = [("one", text) for text in TEXTS]
    encoder = adapters.RankrtCrossEncoder(reranker)
    assert encoder.score(pairs) == [3.0, 4.0, 1.0, 1.0]
    assert {type(score) for score in encoder.score(pairs)} == {float}
    assert asyncio.run(encoder.ascore(pairs)) == [3.0, 4.0, 1.0, 1.0]
    assert encoder.score([]) == []
    own = adapters.RankrtCrossEncoder(str(artifact.folder), normalize=True, max_length=32)
    assert own.reranker.rules.max_length == 32
    assert own.score([("zero", "zero")]) == [0.5]


def test_their_reranker_takes_the_cross_encoder(reranker: Reranker, documents: list[Document]):
    module = pytest.importorskip("langchain_classic.retrievers.document_compressors", reason="needs langchain-classic")
    theirs = module.CrossEncoderReranker(model=adapters.RankrtCrossEncoder(reranker), top_n=2)
    assert [found.page_content for found in theirs.compress_documents(documents, "one")] == ["three", "two"]


def test_the_best_documents_come_first_with_their_scores(reranker: Reranker, documents: list[Document]):
    compressor = adapters.RankrtRerank(model=reranker, top_n=2)
    found = compressor.compress_documents(documents, "one")
    assert [(one.id, one.page_content) for one in found] == [("d1", "three"), ("d0", "two")]
    assert found[0].metadata == {"source": 1, "relevance_score": pytest.approx(0.98201376)}
    assert documents[1].metadata == {"source": 1}, "the given documents stay as they are"
    assert asyncio.run(compressor.acompress_documents(documents, "one")) == found


def test_all_documents_and_logits_are_a_choice(artifact: Artifact, documents: list[Document]):
    compressor = adapters.RankrtRerank(
        model=str(artifact.folder), top_n=None, normalize=False, load_options={"max_length": 32}
    )
    found = compressor.compress_documents(documents, "one")
    assert [one.metadata["relevance_score"] for one in found] == [4.0, 3.0, 1.0, 1.0]
    assert compressor.compress_documents([], "one") == []


def test_a_retriever_compresses_with_it(reranker: Reranker, documents: list[Document]):
    module = pytest.importorskip("langchain_classic.retrievers", reason="needs langchain-classic")
    from langchain_core.retrievers import BaseRetriever

    class All(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return documents

    retriever = module.ContextualCompressionRetriever(
        base_compressor=adapters.RankrtRerank(model=reranker, top_n=1), base_retriever=All()
    )
    assert [found.page_content for found in retriever.invoke("one")] == ["three"]
    assert [found.page_content for found in asyncio.run(retriever.ainvoke("one"))] == ["three"]


@pytest.mark.parametrize("given", ["two", {"page_content": "two"}, None])
def test_what_is_not_a_document_is_named(reranker: Reranker, documents: list[Document], given: Any):
    compressor = adapters.RankrtRerank(model=reranker)
    with pytest.raises(InputError, match=f"document 4 is {type(given).__name__}, not a LangChain Document; pass Doc"):
        compressor.compress_documents([*documents, given], "one")
    with pytest.raises(InputError, match="document 4"):
        asyncio.run(compressor.acompress_documents([*documents, given], "one"))


def test_options_and_queries_are_checked(reranker: Reranker, documents: list[Document]):
    with pytest.raises(ValueError, match="top_n"):
        adapters.RankrtRerank(model=reranker, top_n=0)
    with pytest.raises(ValueError, match="top_k"):
        adapters.RankrtRerank(model=reranker, top_k=3)
    with pytest.raises(ValueError, match="model is NoneType, expected a folder"):
        adapters.RankrtRerank(model=None)
    with pytest.raises(InputError, match="the query is empty"):
        adapters.RankrtRerank(model=reranker).compress_documents(documents, " ")
