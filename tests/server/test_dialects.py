"""Each dialect to the letter: what its clients send, what they read, what they are told when it goes wrong."""

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from tokenizers import Tokenizer  # noqa: E402

from rankrt.server.http.routes import BARE, prefixed  # noqa: E402
from tests.server.support import reload, serving, serving_with_service  # noqa: E402
from tests.support import calibrate, tiny_artifact, tiny_tokenizer  # noqa: E402

CHECKPOINT = Path(__file__).resolve().parents[2] / "tiny_reranker" / "checkpoint"


def sigmoid(x: float) -> Any:
    return pytest.approx(1 / (1 + math.exp(-x)), abs=1e-7)


def post(client: Any, path: str, body: dict[str, Any], **headers: str) -> Any:
    response = client.post(path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: Any, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    response = client.post(path, json=body, headers=headers)
    assert response.headers["content-type"] == "application/json"
    return response.status_code, response.json()


# A row's score is the sum of its words' points: one query of "one", so 3 for "two" and 4 for "three".
DOCUMENTS = ["two", "three", "zero"]


@pytest.mark.parametrize("path", ["/rerank", "/tei/rerank", "/", "/invocations"])
def test_tei_answers_a_bare_array_with_text_only_if_asked(client: Any, path: str):
    body = {"query": "one", "texts": DOCUMENTS, "unknown": 1}
    assert post(client, path, body) == [
        {"index": 1, "score": sigmoid(4)},
        {"index": 0, "score": sigmoid(3)},
        {"index": 2, "score": sigmoid(1)},
    ]
    body |= {"raw_scores": True, "return_text": True}
    assert post(client, path, body)[0] == {"index": 1, "score": 4.0, "text": "three"}


def test_tei_says_in_headers_what_it_took(client: Any):
    headers = client.post("/rerank", json={"query": "one", "texts": ["two", "three " * 99]}).headers
    assert headers["x-compute-type"] == "cpu"
    assert headers["x-compute-tokens"] == str(6 + 64)
    assert headers["x-rankrt-truncated"] == "1"
    times = [f"x-{name}-time" for name in ("compute", "total", "tokenization", "queue", "inference")]
    assert all(headers[name].isdigit() for name in times)


def test_tei_cuts_where_it_is_told_to(client: Any):
    long = "four " * 100 + "one"
    body = {"query": "zero", "texts": [long], "raw_scores": True}
    assert post(client, "/rerank", body)[0]["score"] == 59 * 4
    for left in ("left", "Left"):
        assert post(client, "/rerank", body | {"truncation_direction": left})[0]["score"] == 58 * 4 + 1
    assert refused(client, "/rerank", body | {"truncate": False}) == (
        422,
        {
            "error": "text 0 and its query have more than 64 tokens, special ones counted, and `truncate` is false",
            "error_type": "Validation",
        },
    )


@pytest.mark.parametrize(
    ("body", "status", "error", "kind"),
    [
        ({"query": "one", "texts": []}, 400, "there are no documents to rank", "Empty"),
        ({"query": " ", "texts": ["a"]}, 422, "the query is empty: there is nothing to rank by", "Validation"),
        ({"query": 1, "texts": ["a"]}, 422, "Expected `str`, got `int` - at `$.query`", "Validation"),
        ({"texts": ["a"]}, 422, "Object missing required field `query`", "Validation"),
        ({"query": "a", "texts": [None]}, 422, "Expected `str`, got `null` - at `$.texts[0]`", "Validation"),
        ({"query": "one", "texts": ["nan"]}, 424, None, "Backend"),
    ],
)
def test_tei_errors(client: Any, body: Any, status: int, error: str | None, kind: str):
    found_status, found = refused(client, "/rerank", body)
    assert (found_status, found["error_type"]) == (status, kind)
    assert error is None or found["error"] == error


def test_tei_predicts_a_pair_or_several(client: Any):
    assert post(client, "/predict", {"inputs": ["one", "two"]}) == [{"score": sigmoid(3), "label": "LABEL_0"}]
    assert post(client, "/predict", {"inputs": [["one", "two"], ["two", "two"]], "raw_scores": True}) == [
        [{"score": 3.0, "label": "LABEL_0"}],
        [{"score": 4.0, "label": "LABEL_0"}],
    ]
    for inputs in ("one", ["one"], ["a", "b", "c"], ["a", ["b", "c"]], [["a"]], []):
        assert refused(client, "/predict", {"inputs": inputs})[0] == 422


def test_tei_info_says_what_is_served(client: Any):
    info = client.get("/info").json()
    assert (info["model_id"], info["model_dtype"], info["max_input_length"]) == ("tests/tiny", "fp32", 64)
    assert info["model_type"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}


@pytest.mark.parametrize("path", ["/v1/rerank", "/jina/v1/rerank"])
def test_jina_echoes_documents_unless_it_is_asked_not_to(client: Any, path: str):
    body = {"model": "jina-reranker-v2", "query": {"text": "one"}, "documents": ["two", {"text": "three"}]}
    assert post(client, path, body) == {
        "model": "tiny",
        "usage": {"prompt_tokens": 12, "total_tokens": 12},
        "results": [
            {"index": 1, "relevance_score": sigmoid(4), "document": {"text": "three"}},
            {"index": 0, "relevance_score": sigmoid(3), "document": {"text": "two"}},
        ],
    }
    found = post(client, path, body | {"return_documents": False, "top_n": 1})
    assert found["results"] == [{"index": 1, "relevance_score": sigmoid(4)}]


def test_jina_errors_have_a_detail(client: Any):
    assert refused(client, "/v1/rerank", {"query": "one", "documents": ["a"], "top_n": -1}) == (
        422,
        {"detail": "Expected `int` >= 0 - at `$.top_n`"},
    )
    assert refused(client, "/v1/rerank", {"query": "one", "documents": []})[0] == 422


@pytest.mark.parametrize("path", ["/v2/rerank", "/cohere/v2/rerank"])
def test_cohere_v2_answers_with_meta_and_refuses_unknown_fields(client: Any, path: str):
    body = {"model": "rerank-v3.5", "query": "one", "documents": ["two", "three " * 99], "top_n": 1}
    found = post(client, path, body)
    assert isinstance(found.pop("id"), str)
    assert found == {
        "results": [{"index": 1, "relevance_score": sigmoid(178)}],
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1.0},
            "tokens": {"input_tokens": 70.0, "output_tokens": 0.0},
            "cached_tokens": 0.0,
            "warnings": ["1 of 2 documents were truncated"],
        },
    }
    assert refused(client, path, body | {"zzz": 1}) == (422, {"message": "there is no field `zzz` here"})


def test_cohere_v2_cuts_documents_to_max_tokens_per_doc(client: Any):
    body = {"model": "m", "query": "one", "documents": ["two two two two"], "max_tokens_per_doc": 2}
    found = post(client, "/v2/rerank", body)
    assert found["results"] == [{"index": 0, "relevance_score": sigmoid(5)}]
    assert found["meta"]["tokens"]["input_tokens"] == 7.0


def test_cohere_v1_ranks_by_fields_and_echoes_what_it_was_given(client: Any):
    documents = [{"text": "two", "n": 1}, {"text": "three", "n": 2}]
    body = {"query": "one", "documents": documents, "return_documents": True}
    found = post(client, "/cohere/v1/rerank", body)
    assert found["results"][0] == {"index": 1, "relevance_score": sigmoid(4), "document": {"text": "three", "n": 2}}
    assert found["meta"]["api_version"] == {"version": "1"}
    fields = body | {"documents": [{"a": "two", "b": "four"}], "rank_fields": ["a", "b"]}
    assert post(client, "/cohere/v1/rerank", fields)["results"][0]["relevance_score"] == sigmoid(7)
    assert refused(client, "/cohere/v1/rerank", body | {"rank_fields": ["c"]}) == (
        422,
        {"message": "a document has no field 'c'; name those to rank by in rank_fields"},
    )


def test_v1_rerank_is_cohere_s_for_cohere_s_own_client(client: Any):
    found = post(client, "/v1/rerank", {"query": "one", "documents": ["two"]}, **{"x-fern-sdk-name": "cohere"})
    assert set(found) == {"id", "results", "meta"}


@pytest.mark.parametrize("path", ["/rerank", "/vllm/rerank", "/vllm/v1/rerank", "/vllm/v2/rerank", "/openai/v1/rerank"])
def test_vllm_echoes_documents_and_takes_0_for_all(client: Any, path: str):
    body = {"query": "one", "documents": DOCUMENTS, "top_n": 0, "request_id": "mine", "use_activation": False}
    found = post(client, path, body)
    assert found["id"] == "rerank-mine"
    assert found["usage"] == {"prompt_tokens": 18, "total_tokens": 18}
    assert [(hit["index"], hit["relevance_score"]) for hit in found["results"]] == [(1, 4.0), (0, 3.0), (2, 1.0)]
    assert found["results"][0]["document"] == {"text": "three", "multi_modal": None}


def test_vllm_errors_have_its_shape(client: Any):
    assert refused(client, "/vllm/rerank", {"query": "one", "documents": ["a"], "top_n": -1}) == (
        400,
        {
            "error": {
                "message": "Expected `int` >= 0 - at `$.top_n`",
                "type": "BadRequestError",
                "code": 400,
                "param": None,
            }
        },
    )


@pytest.mark.parametrize(
    ("change", "tokens"),
    [
        ({"truncate_prompt_tokens": 10}, 10),
        ({"truncate_prompt_tokens": -1}, 64),
        ({"max_tokens_per_doc": 3}, 3 + 2 + 4),
        ({"max_tokens_per_query": 1}, 64),
        ({"truncation_side": "left"}, 64),
    ],
)
def test_vllm_options_cut_texts(client: Any, change: dict[str, Any], tokens: int):
    body = {"query": "one two", "documents": ["four " * 100]}
    assert post(client, "/vllm/rerank", body | change)["usage"]["total_tokens"] == tokens


@pytest.mark.parametrize(
    "sides",
    [
        {"text_1": "one", "text_2": ["two", "three"]},
        {"queries": ["one"], "documents": ["two", "three"]},
        {"queries": "one", "items": ["two", {"text": "three"}]},
        {"data_1": ["one", "one"], "data_2": ["two", "three"]},
    ],
)
@pytest.mark.parametrize("path", ["/score", "/v1/score", "/vllm/score"])
def test_vllm_scores_one_against_many_and_many_against_as_many(client: Any, path: str, sides: dict[str, Any]):
    found = post(client, path, sides)
    assert found["object"] == "list"
    assert found["id"].startswith("score-")
    assert found["data"] == [
        {"index": 0, "object": "score", "score": sigmoid(3)},
        {"index": 1, "object": "score", "score": sigmoid(4)},
    ]


@pytest.mark.parametrize(
    "sides",
    [
        {},
        {"text_1": "one"},
        {"text_1": ["one", "two"], "text_2": ["a", "b", "c"]},
        {"text_1": "one", "text_2": []},
        {"text_1": "a", "text_2": "b", "data_1": "a", "data_2": "b"},
        {"text_1": "", "text_2": "b"},
    ],
)
def test_vllm_refuses_sides_that_do_not_fit(client: Any, sides: dict[str, Any]):
    assert refused(client, "/score", sides)[0] == 400


def test_infinity_echoes_plain_strings(client: Any):
    body = {"query": "one", "documents": DOCUMENTS, "top_n": 1, "return_documents": True, "raw_scores": True}
    found = post(client, "/infinity/rerank", body)
    assert found["results"] == [{"relevance_score": 4.0, "index": 1, "document": "three"}]
    assert (found["object"], found["model"]) == ("rerank", "tiny")
    assert found["id"].startswith("infinity-")
    unasked = post(client, "/infinity/rerank", {"query": "one", "documents": ["two"]})
    assert unasked["results"] == [{"relevance_score": sigmoid(3), "index": 0, "document": None}]


@pytest.mark.parametrize("path", ["/llamacpp/rerank", "/reranking", "/v1/reranking"])
def test_llama_cpp_answers_logits(client: Any, path: str):
    assert post(client, path, {"query": "one", "documents": ["two", "three"], "top_n": 1}) == {
        "model": "tiny",
        "object": "list",
        "usage": {"prompt_tokens": 12, "total_tokens": 12},
        "results": [{"index": 1, "relevance_score": 4.0}],
    }


def test_rankrt_s_own_tells_everything(client: Any):
    found = post(client, "/rankrt/rerank", {"query": "one", "documents": ["two", "four " * 99]})
    assert found["results"] == [
        {"index": 1, "score": 1.0 + 59 * 4, "n_tokens": 64, "truncated": True},
        {"index": 0, "score": 3.0, "n_tokens": 6},
    ]
    assert (found["n_tokens"], found["variant"], found["is_partial"]) == (70, "cpu-fp32", False)
    assert set(found["milliseconds"]) == {"tokenization", "queue", "inference", "total"}
    normalized = post(client, "/rankrt/rerank", {"query": "one", "documents": ["two"], "normalize": True})
    assert normalized["results"][0]["score"] == sigmoid(3)


def test_rankrt_s_own_says_what_its_scores_are_and_keeps_those_that_reach_a_threshold(client: Any):
    body = {"query": "one", "documents": DOCUMENTS}
    for kind, flags, threshold in [("logit", {}, 2.5), ("sigmoid", {"normalize": True}, 0.9)]:
        found = post(client, "/rankrt/rerank", body | flags | {"score_threshold": threshold})
        assert (found["score_kind"], [hit["index"] for hit in found["results"]]) == (kind, [1, 0])
        assert found["n_documents"] == 3


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/tei/rerank", {"texts": ["two"]}, "sigmoid"),
        ("/tei/rerank", {"texts": ["two"], "raw_scores": True}, "logit"),
        ("/jina/v1/rerank", {"documents": ["two"]}, "sigmoid"),
        ("/infinity/rerank", {"documents": ["two"], "raw_scores": True}, "logit"),
        ("/vllm/rerank", {"documents": ["two"], "use_activation": False}, "logit"),
        ("/vllm/rerank", {"documents": ["two"]}, "sigmoid"),
        ("/llamacpp/rerank", {"documents": ["two"]}, "logit"),
        ("/rankrt/rerank", {"documents": ["two"]}, "logit"),
        ("/rankrt/rerank", {"documents": ["two"], "normalize": True}, "sigmoid"),
    ],
)
def test_a_header_says_what_the_scores_of_any_dialect_are(client: Any, path: str, body: dict[str, Any], kind: str):
    response = client.post(path, json={"query": "one"} | body)
    assert response.headers["x-rankrt-score-kind"] == kind
    score = 3.0 if kind == "logit" else float(f"{1 / (1 + math.exp(-3)):.6f}")
    assert str(score) in response.text


@pytest.mark.parametrize("path", [*prefixed(), *BARE, "/v1/rerank/stream"])
def test_every_answer_says_what_its_scores_are(client: Any, path: str):
    endpoint = prefixed().get(path) or BARE.get(path, BARE["/v1/rerank"])[0]
    with client.stream("POST", path, json=dict(endpoint.example)) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["x-rankrt-score-kind"] == endpoint.kind(
            msgspec.convert(endpoint.example, endpoint.request)
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"normalize": True, "score_threshold": 3}, "score_threshold=3 is not between 0 and 1"),
        ({"calibrated": True}, "calibrated needs a calibration, and tiny has none"),
        ({"calibrated": True, "normalize": True}, "normalize and calibrated both say"),
        ({"score_threshold": "high"}, "`$.score_threshold`"),
    ],
)
def test_a_scale_that_cannot_be_had_is_refused(client: Any, fields: dict[str, Any], message: str):
    status, error = refused(client, "/rankrt/rerank", {"query": "one", "documents": ["two"]} | fields)
    assert (status, error["kind"]) == (422, "invalid")
    assert message in error["message"]


def test_a_threshold_elsewhere_is_refused_with_the_path_that_has_one(client: Any):
    _, error = refused(client, "/v1/rerank", {"query": "one", "documents": ["two"], "score_threshold": 0.5})
    assert "POST /rankrt/rerank" in error["detail"]


def test_rankrt_s_own_answers_probabilities_from_when_a_calibration_was_reloaded(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "tiny")
    body = {"query": "one", "documents": DOCUMENTS, "calibrated": True, "score_threshold": 0.5}
    with serving_with_service(artifact.folder) as (address, service), httpx.Client(base_url=address) as own:
        calibrate(artifact)  # a logit of 3 is even odds
        assert refused(own, "/rankrt/rerank", body)[0] == 422
        reload(service)
        found = post(own, "/rankrt/rerank", body)
    assert found["score_kind"] == "probability"
    assert [(hit["index"], hit["score"]) for hit in found["results"]] == [(1, sigmoid(2)), (0, 0.5)]


def test_llama_cpp_takes_texts_and_answers_as_tei(client: Any):
    body = {"query": "one", "texts": ["two", "three"], "top_n": 1, "return_text": True}
    assert post(client, "/reranking", body) == [{"index": 1, "score": 4.0, "text": "three"}]
    both = body | {"documents": ["two"]}
    assert refused(client, "/reranking", both)[1]["error"]["message"] == "expected either `documents` or `texts`"


def test_voyage_answers_data(client: Any):
    body = {"query": "one", "documents": DOCUMENTS, "model": "rerank-2.5", "top_k": 1, "return_documents": True}
    assert post(client, "/voyage/v1/rerank", body) == {
        "object": "list",
        "data": [{"relevance_score": sigmoid(4), "index": 1, "document": "three"}],
        "model": "tiny",
        "usage": {"total_tokens": 18},
    }
    long = body | {"documents": ["four " * 100]}
    assert post(client, "/voyage/v1/rerank", long | {"truncation": True})["data"][0]["index"] == 0
    status, found = refused(client, "/voyage/v1/rerank", long | {"truncation": False})
    assert (status, found["detail"][:24]) == (400, "text 0 and its query hav")


@pytest.mark.parametrize("path", ["/mixedbread/v1/reranking", "/v1/reranking"])
def test_mixedbread_ranks_an_input(client: Any, path: str):
    body = {"query": "one", "input": ["two", "three"], "top_k": 1, "return_input": True}
    assert post(client, path, body) == {
        "usage": {"prompt_tokens": 12, "total_tokens": 12},
        "model": "tiny",
        "data": [{"index": 1, "score": sigmoid(4), "input": "three", "object": "rank_result"}],
        "top_k": 1,
        "return_input": True,
        "object": "list",
    }
    fields = {"query": "one", "input": [{"a": "two", "b": "four"}], "rank_fields": ["a", "b"]}
    assert post(client, path, fields)["data"][0]["score"] == sigmoid(7)


@pytest.mark.parametrize("path", ["/nim/v1/ranking", "/v1/ranking", "/nim/v1/reranking"])
def test_nim_ranks_passages_and_answers_logits(client: Any, path: str):
    body = {"query": {"text": "one"}, "passages": [{"text": "two"}, {"text": "three"}], "truncate": "END"}
    assert post(client, path, body)["rankings"] == [{"index": 1, "logit": 4.0}, {"index": 0, "logit": 3.0}]
    status, found = refused(client, path, body | {"passages": [{"text": "four " * 100}], "truncate": "NONE"})
    assert (status, found["message"]) == (422, found["detail"])


def test_tei_tokenizes_and_says_which_bytes_a_token_stands_for(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tiny_artifact(tmp_path / "special", tokenizer=tokenizer)
    with serving(tmp_path / "special") as address, httpx.Client(base_url=address) as client:
        (tokens,) = post(client, "/tokenize", {"inputs": "one two"})
        assert [(token["text"], token["special"], token["start"], token["stop"]) for token in tokens] == [
            ("<s>", True, None, None),
            ("one", False, 0, 3),
            ("two", False, 4, 7),
            ("</s>", True, None, None),
        ]
        several = post(client, "/tei/tokenize", {"inputs": ["one", "é one"], "add_special_tokens": False})
        assert several[1][-1] == {"id": several[0][0]["id"], "text": "one", "special": False, "start": 3, "stop": 6}
        assert refused(client, "/tokenize", {"inputs": []})[0] == 400
        assert refused(client, "/tokenize", {"inputs": "a" * (1 << 20) + "a"})[0] == 413
        assert refused(client, "/tokenize", {"inputs": "one", "prompt_name": "query"})[0] == 422


@pytest.mark.export
def test_a_bom_in_a_text_is_left_to_the_model_s_tokenizer_as_the_reference_leaves_it(tmp_path: Path):
    """It is no part of a file, but of a string it is a character like others, and may have a piece of its own."""
    transformers = pytest.importorskip("transformers", reason="needs the export extra")
    reference = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    points = np.arange(len(reference), dtype=np.float32) % 97
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    tiny_artifact(tmp_path / "tiny", tokenizer=tokenizer, points={"fp32": points})
    query, texts = "\ufeffone", ["\ufefftwo", "two\ufeff three", "\ufeff", "two"]
    with serving(tmp_path / "tiny") as address, httpx.Client(base_url=address) as client:
        tokens = post(client, "/tokenize", {"inputs": texts})
        hits = post(client, "/rerank", {"query": query, "texts": texts, "raw_scores": True})
    assert [[token["id"] for token in of_text] for of_text in tokens] == reference(texts)["input_ids"]
    rows = reference([(query, text) for text in texts])["input_ids"]
    assert {hit["index"]: hit["score"] for hit in hits} == {i: points[row].sum() for i, row in enumerate(rows)}
    assert len({*map(tuple, rows)}) == len(texts), "it makes a difference"


def test_the_server_splits_what_other_servers_refuse(client: Any):
    found = post(client, "/rerank", {"query": "one", "texts": ["two"] * 2000 + ["three"], "raw_scores": True})
    assert len(found) == 2001
    assert found[0] == {"index": 2000, "score": 4.0}


def test_a_stream_tells_hits_as_they_are_scored_and_then_the_ranking(client: Any):
    texts = ["two", "three", "zero"] * 200
    with client.stream("POST", "/v1/rerank/stream", json={"query": "one", "documents": texts}) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = [event.split("\n") for event in response.read().decode().split("\n\n") if event]
    assert [name for name, _ in events] == ["event: hit"] * 600 + ["event: done"]
    import json

    hits = [json.loads(data.removeprefix("data: ")) for _, data in events]
    final = hits.pop()
    assert sorted(hit["index"] for hit in hits) == list(range(600))
    assert final["results"] == sorted(hits, key=lambda hit: (-hit["relevance_score"], hit["index"]))


def test_a_stream_that_cannot_begin_is_refused_like_any_request(client: Any):
    assert refused(client, "/v1/rerank/stream", {"query": "", "documents": ["a"]})[0] == 422


def test_one_model_answers_to_every_name_and_says_its_own(client: Any):
    assert post(client, "/v1/rerank", {"model": "anything", "query": "a", "documents": ["b"]})["model"] == "tiny"


def test_scores_are_the_library_s_to_the_last_bit(client: Any, tiny_folder: Path):
    from rankrt import Reranker

    texts = ["two three", "four", "", "one " * 30]
    with Reranker.load(tiny_folder, n_threads=1) as reranker:
        expected = reranker.score([("one two", text) for text in texts]).tolist()
    found = post(client, "/rerank", {"query": "one two", "texts": texts, "raw_scores": True})
    assert {hit["index"]: np.float32(hit["score"]).item() for hit in found} == dict(enumerate(expected))
