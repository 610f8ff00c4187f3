"""Instructions of requests: each dialect's field reaches the row, or the model's lack of a place for one is said."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
pytest.importorskip("httpx", reason="needs httpx")

from rankrt import Reranker
from rankrt.artifact.manifest import Artifact, Prompt, open_artifact, write_manifest
from rankrt.server.dialects import Endpoint
from rankrt.server.http.routes import prefixed
from tests.server.support import serving
from tests.support import tiny_artifact

PATHS = list(prefixed().items())
PROMPT = Prompt(
    query_instruction="",
    query_format="{}{}",
    passage_instruction="",
    passage_format="{}{}",
    question=None,
    instructed_format="{} {}",
    instructions={"law": "three three"},
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact in which an instruction stands before the query; each of its words adds points."""
    artifact = tiny_artifact(tmp_path_factory.mktemp("told") / "told")
    template = msgspec.structs.replace(artifact.manifest.template, prompt=PROMPT)
    write_manifest(msgspec.structs.replace(artifact.manifest, template=template), artifact.folder)
    return open_artifact(artifact.folder)


@pytest.fixture(scope="module")
def own(told: Artifact, _session_cache: None) -> Iterator[Any]:
    import httpx

    with serving(told.folder) as address, httpx.Client(base_url=address, timeout=20) as opened:
        yield opened


def scores(client: Any, body: dict[str, Any], path: str = "/rankrt/rerank") -> list[float]:
    response = client.post(path, json={"query": "one", "documents": ["two", "three"]} | body)
    assert response.status_code == 200, response.text
    return sorted(result["score"] for result in response.json()["results"])


@pytest.mark.parametrize("field", ["instruction", "instruct"])
def test_an_instruction_reaches_the_row_and_the_cache_knows_it(told: Artifact, own: Any, field: str):
    for _ in range(2):  # the second time from the cache
        plain, instructed = scores(own, {}), scores(own, {field: "four"})
        with Reranker.load(told.folder) as reranker:
            pairs = [("one", "two"), ("one", "three")]
            assert plain == sorted(reranker.score(pairs).tolist())
            assert instructed == sorted(reranker.score(pairs, instruction="four").tolist())
        assert instructed != plain


def test_an_instruction_is_named_as_sentence_transformers_names_it(own: Any):
    assert scores(own, {"prompt_name": "law"}) == scores(own, {"instruction": "three three"})
    assert scores(own, {"prompt_name": ""}) == scores(own, {"instruction": ""}) == scores(own, {})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"instruction": "one", "instruct": "two"}, "`instruction` and `instruct` are both given; send one of them"),
        ({"instruction": "one", "prompt_name": "law"}, "`instruction` and `prompt_name` are both given"),
        ({"prompt_name": "tax"}, "prompt_name='tax' is not an instruction of this model, which has these: 'law'"),
    ],
)
def test_what_contradicts_itself_or_is_not_there_is_refused(own: Any, body: dict[str, Any], message: str):
    response = own.post("/rankrt/rerank", json={"query": "one", "documents": ["two"]} | body)
    assert response.status_code in (400, 422)
    assert message in response.json()["message"]


@pytest.mark.parametrize("field", ["instruction", "instruct", "prompt_name"])
@pytest.mark.parametrize(("path", "endpoint"), PATHS, ids=[path for path, _ in PATHS])
def test_every_dialect_refuses_one_for_a_model_without_a_place_for_it(
    client: Any, path: str, endpoint: Endpoint, field: str
):
    response = client.post(path, json={**endpoint.example, field: "find the answer"})
    assert response.status_code in (400, 422), response.text
    assert "this model was trained without a place for an instruction; leave it out" in response.text
