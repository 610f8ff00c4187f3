"""Clients that people have, changed by their address only. Each is skipped where it is not installed."""

from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")

DOCUMENTS = ["two", "three", "zero"]
BEST_FIRST = [1, 0, 2]
# Other people's packages warn about one another.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def cohere() -> Any:
    return pytest.importorskip("cohere", reason="the cohere SDK is not installed")


def test_cohere_v2(cohere: Any, address: str):
    client = cohere.ClientV2(api_key="none", base_url=address)
    found = client.rerank(model="rerank-v3.5", query="one", documents=DOCUMENTS, top_n=2, max_tokens_per_doc=100)
    assert [result.index for result in found.results] == BEST_FIRST[:2]
    assert found.results[0].relevance_score == pytest.approx(0.98201376)
    assert found.meta.tokens.input_tokens == 18
    assert found.meta.billed_units.search_units == 1


def test_cohere_v1(cohere: Any, address: str):
    client = cohere.Client(api_key="none", base_url=address)
    found = client.rerank(model="m", query="one", documents=DOCUMENTS, return_documents=True)
    assert [(result.index, result.document.text) for result in found.results] == [
        (1, "three"),
        (0, "two"),
        (2, "zero"),
    ]


def test_cohere_raises_its_own_errors(cohere: Any, address: str):
    with pytest.raises(cohere.UnprocessableEntityError) as refused:
        cohere.ClientV2(api_key="none", base_url=address).rerank(model="m", query=" ", documents=["a"])
    assert refused.value.body == {"message": "the query is empty: there is nothing to rank by"}


def test_langchain_s_cohere(address: str):
    module = pytest.importorskip("langchain_cohere", reason="langchain-cohere is not installed")
    reranker = module.CohereRerank(cohere_api_key="none", base_url=address, model="m", top_n=2)
    found = reranker.rerank(DOCUMENTS, "one")
    assert [hit["index"] for hit in found] == BEST_FIRST[:2]


def test_langchain_s_jina(address: str, monkeypatch: pytest.MonkeyPatch):
    module = pytest.importorskip(
        "langchain_community.document_compressors.jina_rerank", reason="langchain-community is not installed"
    )
    monkeypatch.setattr(module, "JINA_API_URL", f"{address}/v1/rerank")
    found = module.JinaRerank(jina_api_key="none", model="m", top_n=2).rerank(DOCUMENTS, "one")
    assert [hit["index"] for hit in found] == BEST_FIRST[:2]


def test_llama_index_s_tei(address: str):
    module = pytest.importorskip(
        "llama_index.postprocessor.tei_rerank", reason="llama-index-postprocessor-tei-rerank is not installed"
    )
    schema = pytest.importorskip("llama_index.core.schema")
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text), score=0.0) for text in DOCUMENTS]
    reranker = module.TextEmbeddingInference(base_url=address, top_n=2)
    found = reranker.postprocess_nodes(nodes, query_str="one")
    assert [node.node.get_content() for node in found] == ["three", "two"]


def test_llama_index_s_jina(address: str):
    module = pytest.importorskip(
        "llama_index.postprocessor.jinaai_rerank", reason="llama-index-postprocessor-jinaai-rerank is not installed"
    )
    schema = pytest.importorskip("llama_index.core.schema")
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text), score=0.0) for text in DOCUMENTS]
    reranker = module.JinaRerank(base_url=f"{address}/v1", api_key="none", top_n=2)
    assert [node.node.get_content() for node in reranker.postprocess_nodes(nodes, query_str="one")] == ["three", "two"]


def test_haystack_s_tei(address: str):
    module = pytest.importorskip(
        "haystack_integrations.components.rankers.huggingface_api", reason="huggingface-api-haystack is not installed"
    )
    haystack = pytest.importorskip("haystack")
    (ranker_type,) = [value for name, value in vars(module).items() if name.endswith("TEIRanker")]
    ranker = ranker_type(url=address, top_k=2)
    found = ranker.run(query="one", documents=[haystack.Document(content=text) for text in DOCUMENTS])
    assert [document.content for document in found["documents"]] == ["three", "two"]


@pytest.mark.parametrize(
    ("provider", "path"),
    [("cohere", "/cohere"), ("infinity", "/infinity"), ("hosted_vllm", ""), ("jina_ai", ""), ("huggingface", "")],
)
def test_litellm(address: str, provider: str, path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    found = litellm.rerank(
        model=f"{provider}/m", query="one", documents=DOCUMENTS, top_n=2, api_base=address + path, api_key="none"
    )
    assert [hit["index"] for hit in found.results] == BEST_FIRST[:2]
    assert found.results[0]["relevance_score"] == pytest.approx(0.98201376)


def test_infinity_client(address: str):
    infinity = pytest.importorskip("infinity_client", reason="infinity-client is not installed")
    models = pytest.importorskip("infinity_client.api.default.models")
    rerank = pytest.importorskip("infinity_client.api.default.rerank")
    asked = pytest.importorskip("infinity_client.models").RerankInput(
        query="one", documents=DOCUMENTS, top_n=2, raw_scores=True
    )
    found = rerank.sync(client=infinity.Client(base_url=address), body=asked)
    assert [(hit.index, hit.relevance_score) for hit in found.results] == [(1, 4.0), (0, 3.0)]
    served = models.sync(client=infinity.Client(base_url=f"{address}/infinity"))
    assert [model.id for model in served.data] == ["tiny"]


def test_mixedbread_s_own(address: str):
    mixedbread = pytest.importorskip("mixedbread", reason="mixedbread is not installed")
    client = mixedbread.Mixedbread(api_key="none", base_url=address)
    found = client.rerank(model="m", query="one", input=DOCUMENTS, top_k=2, return_input=True)
    assert [(hit.index, hit.input) for hit in found.data] == [(1, "three"), (0, "two")]
