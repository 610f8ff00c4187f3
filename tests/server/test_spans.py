"""`return_spans` of /rankrt/rerank: the part of each document that the model has read, and its best window."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from rankrt import Reranker  # noqa: E402
from rankrt.server.models import LoadOptions  # noqa: E402
from tests.server.support import serving  # noqa: E402

# Of a row of 64 tokens, five are the query "one" and what stands around the two texts.
N_READ = 59
LONG = "zero " * 80 + "four four " + "zero " * 80


def results(client: Any, documents: list[str], **fields: Any) -> list[Any]:
    body = {"query": "one", "documents": documents, "return_spans": True, **fields}
    response = client.post("/rankrt/rerank", json=body)
    assert response.status_code == 200, response.text
    return sorted(response.json()["results"], key=lambda hit: int(hit["index"]))


def test_a_document_that_fits_was_read_whole_and_a_cut_one_to_the_last_token_that_did(client: Any):
    documents = ["two three", "", "zero " * 99]
    assert [hit["read"] for hit in results(client, documents)] == [[0, 9], [0, 0], [0, N_READ * 5 - 1]]
    assert not any("span" in hit for hit in results(client, documents)), "there are no windows"


def test_places_count_code_points(client: Any):
    document = "😀 é " * 60  # each an unknown word
    (hit,) = results(client, [document])
    assert len(document[slice(*hit["read"])].split()) == N_READ
    (hit,) = results(client, [document], truncation_side="left")
    assert hit["read"][1] == len(document)
    assert len(document[slice(*hit["read"])].split()) == N_READ


def test_places_of_long_texts_are_found_in_a_part_of_them(client: Any):
    document = "one two\n" * 200_000
    (hit,) = results(client, [document])
    assert len(document[slice(*hit["read"])].split()) == N_READ
    (hit,) = results(client, [document], truncation_side="left")
    assert (len(document[slice(*hit["read"])].split()), hit["read"][1]) == (N_READ, len(document))


def test_windows_read_all_and_the_best_of_them_is_the_library_s(client: Any, tiny_folder: Path):
    (hit,) = results(client, [LONG], long_documents="chunk")
    assert hit["read"] == [0, len(LONG.rstrip())]
    with Reranker.load(tiny_folder, long_documents="chunk") as reranker:
        (expected,) = reranker.rank("one", [LONG])
    assert (hit["score"], tuple(hit["span"])) == (expected.score, expected.span)
    assert "four four" in LONG[slice(*hit["span"])]


def test_a_request_may_be_read_in_windows_like_on_a_server_that_does_so_always(client: Any, tiny_folder: Path):
    documents = [LONG, "two", LONG[200:]]
    load = LoadOptions(rules={"long_documents": "chunk"})
    with serving(tiny_folder, load=load) as address, httpx.Client(base_url=address) as other:
        assert results(client, documents, long_documents="chunk") == results(other, documents)
        assert results(client, documents) == results(other, documents, long_documents="truncate")


def test_windows_of_a_part_say_that_only_this_part_was_read(client: Any):
    (hit,) = results(client, [LONG], long_documents="chunk", passage_max_length=70)
    assert hit["truncated"]
    assert len(LONG[slice(*hit["read"])].split()) == 70


def test_scores_are_the_same_with_and_without_places(client: Any):
    documents = ["two", LONG, "four " * 99, ""]
    for hit, plain in zip(results(client, documents), results(client, documents, return_spans=False), strict=True):
        del hit["read"]
        assert hit == plain


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"return_spans": "some"}, "`$.return_spans`"),
        ({"long_documents": "cut"}, "`$.long_documents`"),
    ],
)
def test_what_cannot_be_meant_is_refused(client: Any, fields: dict[str, Any], said: str):
    response = client.post("/rankrt/rerank", json={"query": "one", "documents": ["two"]} | fields)
    assert response.status_code == 422
    assert said in response.json()["message"]
