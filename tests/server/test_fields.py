"""Which fields of a body are obeyed, passed over or refused, in every dialect: nothing is dropped without a word."""

from typing import Any

import msgspec
import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
pytest.importorskip("httpx", reason="needs httpx")

from rankrt.server.dialects import Endpoint, fields
from rankrt.server.failures import Failure
from rankrt.server.http.routes import BARE, ENDPOINTS, choose, prefixed

PATHS = list(prefixed().items())
LENIENT = [(path, endpoint) for path, endpoint in PATHS if not endpoint.dialect.is_strict]
STRICT = [(path, endpoint) for path, endpoint in PATHS if endpoint.dialect.is_strict]
DOCUMENTS = ["two", "three", "zero"]
# Whatever of an answer differs from one request to the next.
CHANGING = {"id", "created", "milliseconds"}


def answered(client: Any, path: str, body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    found = response.json()
    return {k: v for k, v in found.items() if k not in CHANGING} if isinstance(found, dict) else found


def refusal(client: Any, path: str, body: Any) -> str:
    response = client.post(path, json=body)
    assert response.status_code in (400, 422), response.text
    return str(response.text)


def body_of(endpoint: Endpoint) -> dict[str, Any]:
    return dict(endpoint.example)


@pytest.mark.parametrize(("path", "endpoint"), PATHS, ids=[path for path, _ in PATHS])
def test_every_example_is_answered(client: Any, path: str, endpoint: Endpoint):
    answered(client, path, body_of(endpoint))


@pytest.mark.parametrize(("path", "endpoint"), PATHS, ids=[path for path, _ in PATHS])
def test_null_is_as_if_a_field_was_left_out(client: Any, path: str, endpoint: Endpoint):
    body = body_of(endpoint)
    optional = [field.encode_name for field in msgspec.structs.fields(endpoint.request) if not field.required]
    nulls = {name: None for name in [*optional, *fields.REFUSED, "no such field"] if name not in body}
    assert answered(client, path, body | nulls) == answered(client, path, body)


@pytest.mark.parametrize(("path", "endpoint"), PATHS, ids=[path for path, _ in PATHS])
def test_what_would_change_the_scores_is_obeyed_or_refused_by_its_name(client: Any, path: str, endpoint: Endpoint):
    body, known = body_of(endpoint), fields.names_of(endpoint.request)
    refused = [name for name in endpoint.refused if name not in known]
    assert {"query_instruction", "chat_template_kwargs", "softmax", "activation", "images"} <= set(refused)
    assert "`query_instruction` is not supported: " in refusal(client, path, body | {"query_instruction": "find"})
    for name in refused:
        with pytest.raises(Failure, match=f"`{name}` is not supported: .+"):
            endpoint.check({**dict.fromkeys(body, b"1"), name: b"7"})


@pytest.mark.parametrize(("path", "endpoint"), PATHS, ids=[path for path, _ in PATHS])
def test_a_refused_field_that_asks_for_nothing_is_no_reason(client: Any, path: str, endpoint: Endpoint):
    body, known = body_of(endpoint), fields.names_of(endpoint.request)
    nothing = {"instruction": "", "chat_template_kwargs": {}, "softmax": False, "images": [], "kwargs": "{}"}
    nothing |= {name: True for name in ("truncate", "truncation") if name not in known}
    assert answered(client, path, body | nothing) == answered(client, path, body)


def test_the_harmless_fields_are_these():
    assert sorted(fields.HARMLESS) == [
        "backend",
        "cache_salt",
        "client_name",
        "custom_llm_provider",
        "dimensions",
        "encoding_format",
        "extra_headers",
        "litellm_call_id",
        "litellm_params",
        "metadata",
        "mm_processor_kwargs",
        "padding",
        "prompt_cache_key",
        "return_len",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "temperature",
        "top_p",
        "user",
    ]


@pytest.mark.parametrize(("path", "endpoint"), LENIENT, ids=[path for path, _ in LENIENT])
def test_harmless_fields_pass_without_a_word(client: Any, path: str, endpoint: Endpoint):
    body = body_of(endpoint)
    junk = dict.fromkeys(fields.HARMLESS, "anything")
    response = client.post(path, json=body | junk)
    assert "x-rankrt-unknown-fields" not in response.headers
    assert answered(client, path, body | junk) == answered(client, path, body)


@pytest.mark.parametrize(("path", "endpoint"), LENIENT, ids=[path for path, _ in LENIENT])
def test_an_unknown_field_is_passed_over_and_named_in_a_header(client: Any, path: str, endpoint: Endpoint):
    body = body_of(endpoint) | {"zzz": 1, "has space": 2}
    assert client.post(path, json=body).headers["x-rankrt-unknown-fields"] == "zzz"


@pytest.mark.parametrize(("path", "endpoint"), STRICT, ids=[path for path, _ in STRICT])
def test_strict_dialects_refuse_every_unknown_field(client: Any, path: str, endpoint: Endpoint):
    assert "there is no field `zzz` here" in refusal(client, path, body_of(endpoint) | {"zzz": 1})
    for name in fields.HARMLESS:
        with pytest.raises(Failure, match=f"there is no field `{name}` here"):
            endpoint.check({name: b"1"})


@pytest.mark.parametrize(
    ("path", "name", "meant"),
    [
        ("/v1/rerank", "top_N", "top_n"),
        ("/v1/rerank", "topN", "top_n"),
        ("/v1/rerank", "retrun_documents", "return_documents"),
        ("/v1/rerank", "limit", "top_n"),
        ("/infinity/rerank", "rawScores", "raw_scores"),
        ("/rerank", "docs", "documents"),
        ("/cohere/v2/rerank", "top_k", "top_n"),
        ("/cohere/v2/rerank", "max_token_per_doc", "max_tokens_per_doc"),
        ("/rankrt/rerank", "maxLength", "max_length"),
    ],
)
def test_a_name_that_is_nearly_one_is_refused_with_it(client: Any, path: str, name: str, meant: str):
    body = {"model": "m", "query": "one", "documents": ["two"], name: 1}
    assert f"there is no field `{name}` here; did you mean `{meant}`?" in refusal(client, path, body)


def test_a_body_of_many_fields_takes_no_time_to_refuse(client: Any):
    many = {f"field {i}": 1 for i in range(100_000)}
    assert "too many fields: 100002 (limit 100)" in refusal(
        client, "/v1/rerank", many | {"query": "a", "documents": []}
    )


def test_tei_s_clients_are_told_that_its_documents_are_texts(client: Any):
    assert "did you mean `texts`?" in refusal(client, "/tei/rerank", {"query": "one", "document": ["two"]})
    assert "TEI's requests have `texts`" in refusal(client, "/tei/rerank", {"query": "one", "documents": ["two"]})


def test_top_k_at_v2_rerank_is_understood_although_cohere_knows_it_not(client: Any):
    body = {"model": "m", "query": "one", "documents": DOCUMENTS, "top_k": 1}
    assert len(answered(client, "/v2/rerank", body)["results"]) == 1


BEST = {"/vllm/rerank", "/jina/v1/rerank", "/infinity/rerank", "/llamacpp/rerank", "/rankrt/rerank", "/v1/rerank"}


@pytest.mark.parametrize("path", sorted(BEST))
def test_top_k_is_another_name_for_top_n_and_0_is_all(client: Any, path: str):
    def n_results(**limit: Any) -> int:
        return len(answered(client, path, {"query": "one", "documents": DOCUMENTS, **limit})["results"])

    assert [n_results(top_n=1), n_results(top_k=1), n_results(top_n=1, top_k=1), n_results(top_n=0, top_k=1)] == [1] * 4
    assert [n_results(top_n=0), n_results(top_k=0), n_results(top_n=None, top_k=0)] == [3] * 3
    both = {"query": "one", "documents": DOCUMENTS, "top_n": 1, "top_k": 2}
    assert "`top_n` is 1 and `top_k` is 2; send one of them" in refusal(client, path, both)
    assert "top_n" in refusal(client, path, both | {"top_n": -1})


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/cohere/v1/rerank", "/cohere/v2/rerank"])
def test_top_n_of_0_or_null_is_all_at_cohere_s_paths_too(client: Any, path: str):
    for n in (0, None):
        body = {"model": "m", "query": "one", "documents": DOCUMENTS, "top_n": n}
        assert len(answered(client, path, body)["results"]) == 3


def test_tei_obeys_top_n_that_litellm_sends(client: Any):
    assert len(answered(client, "/tei/rerank", {"query": "one", "texts": DOCUMENTS, "top_n": 2})) == 2


@pytest.mark.parametrize(("said", "is_echoed"), [("true", True), ("True", True), ("false", False), (None, True)])
def test_a_flag_may_be_written_as_text(client: Any, said: Any, is_echoed: bool):
    body = {"query": "one", "documents": ["two"], "return_documents": said}
    assert ("document" in answered(client, "/v1/rerank", body)["results"][0]) is is_echoed
    assert "return_documents" in refusal(client, "/v1/rerank", body | {"return_documents": "perhaps"})


PARTS = [{"type": "text", "text": "thr"}, {"type": "text", "text": "ee"}]


@pytest.mark.parametrize("path", ["/vllm/rerank", "/v1/rerank", "/rankrt/rerank", "/llamacpp/rerank"])
@pytest.mark.parametrize("document", [{"content": PARTS}, PARTS, {"content": "three"}, {"text": "three", "id": 7}])
def test_content_of_text_parts_is_a_text(client: Any, path: str, document: Any):
    body = {"query": "one", "documents": ["two", document]}
    assert answered(client, path, body) == answered(client, path, body | {"documents": ["two", "three"]})


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"content": [{"type": "image_url", "image_url": {"url": "u"}}]}, "a part of type `image_url`"),
        ({"text": "three", "image": "https://..."}, "text only, not `image` - at `$.documents[1]`"),
        ({"image": "https://..."}, "text only, not `image`"),
        ({}, "expected either `text` or `content` - at `$.documents[1]`"),
        ({"text": "a", "content": "b"}, "expected either `text` or `content`"),
    ],
)
@pytest.mark.parametrize("path", ["/vllm/rerank", "/v1/rerank", "/rankrt/rerank"])
def test_what_is_not_text_is_refused_with_its_place(client: Any, path: str, document: Any, said: str):
    assert said in refusal(client, path, {"query": "one", "documents": ["two", document]})


@pytest.mark.parametrize("documents", ["three", {"text": "three"}, {"content": PARTS}])
def test_vllm_takes_one_document_that_is_no_list(client: Any, documents: Any):
    found = answered(client, "/vllm/rerank", {"query": "one", "documents": documents})
    assert [(hit["index"], hit["document"]["text"]) for hit in found["results"]] == [(0, "three")]


CHOICES = [
    ("/rerank", {"query", "texts"}, "tei"),
    ("/rerank", {"query", "texts", "raw_scores", "truncate"}, "tei"),
    ("/rerank", {"query", "documents"}, "vllm"),
    ("/rerank", {"query", "documents", "model", "top_n", "return_documents"}, "vllm"),
    ("/rerank", {"query", "documents", "return_documents", "raw_scores", "model"}, "infinity"),
    ("/rerank", {"query"}, "tei"),
    ("/rerank", set(), "tei"),
    ("/v1/rerank", {"query", "documents", "model", "top_n", "return_documents"}, "jina"),
    ("/v1/rerank", {"query", "documents", "top_k"}, "jina"),
    ("/v1/rerank", {"query", "documents", "truncate_prompt_tokens"}, "vllm"),
    ("/v1/rerank", {"query", "documents", "use_activation"}, "vllm"),
    ("/v1/rerank", {"query", "documents", "max_tokens_per_doc"}, "vllm"),
    ("/v1/rerank", {"query", "documents", "rank_fields"}, "cohere"),
    ("/v2/rerank", {"model", "query", "documents", "top_n", "max_tokens_per_doc", "priority"}, "cohere"),
    ("/v2/rerank", {"model", "query", "documents", "truncate_prompt_tokens"}, "vllm"),
    ("/v1/reranking", {"query", "documents"}, "llamacpp"),
    ("/v1/reranking", {"query", "texts"}, "llamacpp"),
    ("/v1/reranking", {"query", "input", "top_k"}, "mixedbread"),
]


@pytest.mark.parametrize(("path", "names", "dialect"), CHOICES)
def test_where_dialects_share_a_path_the_fields_say_which_is_meant(path: str, names: set[str], dialect: str):
    assert choose(BARE[path], {}, dict.fromkeys(names, b"1")).dialect.name == dialect


def test_cohere_s_own_client_says_its_name():
    given = dict.fromkeys(("query", "documents", "top_n"), b"1")
    for headers in ({"x-fern-sdk-name": "cohere"}, {"x-client-name": "us"}):
        assert choose(BARE["/v1/rerank"], headers, given).dialect.name == "cohere"


def test_vllm_s_fields_are_obeyed_at_v1_rerank(client: Any):
    body = {"query": "one", "documents": ["two three"], "max_tokens_per_doc": 1, "use_activation": False}
    assert answered(client, "/v1/rerank", body)["results"][0]["relevance_score"] == 3.0


@pytest.mark.parametrize("value", [0.1234567, 1e-10, 16777216.0, -0.0, 3.0])
def test_a_score_is_written_as_the_shortest_float32(value: float):
    import numpy as np

    from rankrt.server.dialects import scores_of

    class Answer:
        logits = np.array([value], np.float32)

    (found,) = scores_of(Answer(), "logit")  # type: ignore[arg-type]
    assert msgspec.json.encode(float(found)) == msgspec.json.encode(value)
    assert np.float32(found) == np.float32(value)


def test_there_is_a_place_for_every_dialect():
    assert {endpoint.dialect.name for endpoint in ENDPOINTS} == {path.split("/")[1] for path, _ in PATHS}
