"""What real clients send is answered with what they read.

Each file of contracts/ is one client: where in its source a body is built, the bodies, and the fields of the answer
that it reads, by path (`results.*.index`) and type. `refusals` are bodies that have to be refused, with the status and
the fields of the error that the client reads.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
pytest.importorskip("httpx", reason="needs httpx")

FILES = sorted((Path(__file__).parent / "contracts").glob("*.json"))
CONTRACTS = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in FILES}
TYPES: dict[str, Any] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "object": dict,
    "array": list,
    "boolean": bool,
}
# A query of "one" gives "three" 4 points, "two" 3 and "zero" 1; all contracts rank these.
BEST_FIRST = ["three", "two", "zero"]


def cases(kind: str) -> list[Any]:
    return [
        pytest.param(case, id=f"{name}-{i}-{case['path']}")
        for name, contract in CONTRACTS.items()
        for i, case in enumerate(contract.get(kind, []))
    ]


def found_at(path: str, answer: Any) -> Iterator[Any]:
    """Yield what a client reads of an answer: `*` is each item of a list."""
    name, _, rest = path.partition(".")
    for item in answer if name == "*" else [answer[name]]:
        yield from found_at(rest, item) if rest else [item]


def check_reads(reads: dict[str, str], answer: Any) -> None:
    for path, kind in reads.items():
        found = list(found_at(path, answer))
        assert found, f"{path} is not there"
        assert all(isinstance(item, TYPES[kind]) for item in found), (path, found)


def results_of(answer: Any) -> list[dict[str, Any]]:
    if isinstance(answer, list):
        return answer
    (results,) = [answer[name] for name in ("results", "data", "rankings") if name in answer]
    return list(results)


def texts_of(body: dict[str, Any]) -> list[str]:
    (documents,) = [body[name] for name in ("documents", "texts", "passages", "input") if name in body]
    documents = [documents] if isinstance(documents, str) else documents
    plain = [d if isinstance(d, str) else d.get("text") or d["content"][0]["text"] for d in documents]
    return [str(text) for text in plain]


@pytest.mark.parametrize("case", cases("requests"))
def test_a_client_s_request_is_answered_with_what_it_reads(client: Any, case: dict[str, Any]):
    method, headers = case.get("method", "POST"), case.get("headers")
    response = client.request(method, case["path"], json=case.get("body"), headers=headers)
    assert response.status_code == 200, response.text
    assert "x-rankrt-unknown-fields" not in response.headers, "every field that a client sends is known"
    answer = response.json()
    check_reads(case["reads"], answer)
    if "n_results" in case:
        texts = texts_of(case["body"])
        ranked = [texts[result["index"]] for result in results_of(answer)]
        expected = [text for text in BEST_FIRST if text in texts][: case["n_results"]]
        assert ranked == expected


@pytest.mark.parametrize("case", cases("refusals"))
def test_what_a_client_may_not_ask_is_refused_in_the_fields_it_reads(client: Any, case: dict[str, Any]):
    response = client.post(case["path"], json=case["body"], headers=case.get("headers"))
    assert response.status_code == case["status"], response.text
    check_reads(case["reads"], response.json())


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_contract_names_its_source(name: str):
    contract = CONTRACTS[name]
    assert contract["client"]
    for source in contract["sources"]:
        assert set(source) == {"project", "file", "version", "built_in"}
        assert all(source.values())
