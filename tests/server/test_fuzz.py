"""Whatever comes in over the wire, or lies in a manifest, is answered or refused; nothing breaks.

RANKRT_FUZZ_SECONDS lets each search go on for so long.
"""

import copy
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")

from rankrt import ArtifactError, RankrtError, Reranker
from rankrt.artifact.manifest import parse_manifest

SECONDS = float(os.environ.get("RANKRT_FUZZ_SECONDS", "0"))
QUICK = settings(
    max_examples=1000 if SECONDS else 60, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
PATHS = [
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/score",
    "/predict",
    "/cohere/v1/rerank",
    "/infinity/rerank",
    "/llamacpp/rerank",
    "/rankrt/rerank",
    "/v1/rerank/stream",
    "/v1/reranking",
    "/v1/ranking",
    "/voyage/v1/rerank",
    "/tokenize",
]
ANSWERS = {200, 400, 404, 413, 415, 422, 424, 504}
NAMES = ["query", "texts", "documents", "inputs", "text_1", "text_2", "model", "top_n", "truncate", "priority"]
NAMES += ["top_k", "input", "passages", "return_documents", "instruction", "add_special_tokens"]
NAMES += ["raw_scores", "max_tokens_per_doc", "truncate_prompt_tokens", "rank_fields", "timeout_ms", "max_length"]

texts = st.text(max_size=30) | st.sampled_from(["one", "two three", "", " ", "\x00", "\u202e", "😀" * 5])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.sampled_from(["text"]), inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(st.sampled_from(NAMES) | texts, values, max_size=6)
likely = st.fixed_dictionaries(
    {"query": texts},
    optional={
        "texts": st.lists(texts, max_size=5),
        "documents": st.lists(texts | st.fixed_dictionaries({"text": texts}), max_size=5),
        "top_n": st.integers(-2, 10),
        "model": texts,
        "max_length": st.integers(-1, 100),
        "truncate_prompt_tokens": st.integers(-2, 100),
        "max_tokens_per_doc": st.integers(-1, 10),
    },
)


def search(test: Callable[[], None]) -> None:
    """Run a search once, and again as long as there is time; each time it looks elsewhere."""
    until = time.monotonic() + SECONDS
    test()
    while time.monotonic() < until:
        test()


def check(client: Any, path: str, content: bytes) -> None:
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    is_nan = "the model answered nan" in response.text  # the tiny vocabulary has a word for it
    assert response.status_code in ANSWERS or is_nan, (path, content, response.text)
    if response.status_code != 200 or path != "/v1/rerank/stream":
        json.loads(response.content)


def test_any_json_is_answered_or_refused(client: Any):
    @QUICK
    @given(path=st.sampled_from(PATHS), body=bodies | likely)
    def holds(path: str, body: Any) -> None:
        check(client, path, json.dumps(body).encode("utf-8", "surrogatepass"))

    search(holds)


def test_damaged_json_is_answered_or_refused(client: Any):
    @QUICK
    @given(path=st.sampled_from(PATHS), body=likely, data=st.data())
    def holds(path: str, body: Any, data: Any) -> None:
        content = bytearray(json.dumps(body).encode())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        check(client, path, bytes(content[: data.draw(st.integers(0, len(content)))]))

    search(holds)


def test_a_damaged_manifest_is_an_artifact_error(tiny_folder: Path):
    whole = (tiny_folder / "rankrt.json").read_bytes()
    parts = st.binary(max_size=8) | st.sampled_from([b"../", b"null", b"1e999", b"[", b'"', b"-1"])

    @QUICK
    @given(data=st.data())
    def holds(data: Any) -> None:
        content = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 5))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at : at + data.draw(st.integers(0, 8))] = data.draw(parts)
        try:
            manifest = parse_manifest(bytes(content), Path("rankrt.json"))
        except ArtifactError:
            return
        assert all("/" not in name and name not in ("", ".", "..") for name in manifest.files)

    search(holds)


def test_a_manifest_with_other_values_is_an_artifact_error_or_one_that_holds(tiny_folder: Path):
    whole = json.loads((tiny_folder / "rankrt.json").read_bytes())

    @QUICK
    @given(data=st.data())
    def holds(data: Any) -> None:
        changed = copy.deepcopy(whole)
        for _ in range(data.draw(st.integers(1, 3))):
            replace_somewhere(changed, data)
        try:
            manifest = parse_manifest(json.dumps(changed).encode(), Path("rankrt.json"))
        except ArtifactError:
            return
        assert all("/" not in name and name not in ("", ".", "..") for name in manifest.files)
        assert all(name in manifest.files for variant in manifest.variants for name in variant.files)

    search(holds)


def replace_somewhere(tree: Any, data: Any) -> None:
    """Replace or remove one value of a tree of JSON."""
    while True:
        places = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        place = data.draw(st.sampled_from(places))
        if not isinstance(tree[place], dict | list) or not tree[place] or data.draw(st.booleans()):
            break
        tree = tree[place]
    if data.draw(st.booleans()) and isinstance(tree, dict):
        del tree[place]
    else:
        tree[place] = data.draw(values | st.sampled_from(["../x", "/etc/passwd", "a\x00b", 2**63, -1, 4, 1e400]))


def test_an_artifact_with_damaged_files_is_refused_or_loads(tiny_folder: Path, tmp_path: Path):
    """Whatever reads a file, in Python, Rust or C++, what comes of it is an error of ours or a reranker."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    contents = {path: path.read_bytes() for path in sorted(folder.iterdir())}

    @QUICK
    @given(path=st.sampled_from(list(contents)), is_listed=st.booleans(), data=st.data())
    def holds(path: Path, is_listed: bool, data: Any) -> None:
        damaged = damage(contents[path], data)
        path.write_bytes(damaged)
        if is_listed and path.name != "rankrt.json":  # as if somebody had made it so
            manifest = json.loads(contents[folder / "rankrt.json"])
            manifest["files"][path.name]["n_bytes"] = len(damaged)
            (folder / "rankrt.json").write_text(json.dumps(manifest))
        try:
            with Reranker.load(folder, prepare=False) as reranker:
                reranker.score([("one", "two three")])
        except RankrtError:
            pass
        finally:
            for damaged_path in (path, folder / "rankrt.json"):
                damaged_path.write_bytes(contents[damaged_path])

    search(holds)


def damage(content: bytes, data: Any) -> bytes:
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, max(0, len(changed) - 1)))
        changed[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    return bytes(changed[: data.draw(st.integers(0, len(changed)))] if data.draw(st.booleans()) else changed)


# Whether these accept a request depends on what no schema can say: how many texts are on the other side, which fields a
# document has, whether a text is empty in an object, how long the model's rows are, which dialect is meant.
BEYOND_SCHEMA = re.compile(
    r"/|(/openai)?(/v\d)?/rerank(/stream)?|(/v1)?/(score|reranking|ranking)|/(cohere/v1|jina|llamacpp|mixedbread|nim|rankrt|vllm)/.*"
)


def test_the_server_keeps_to_what_it_says_of_itself(address: str):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    checks = pytest.importorskip("schemathesis.specs.openapi.checks")
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    for operation in schema.get_all_operations():
        found = operation.ok()
        excluded = [checks.positive_data_acceptance] if BEYOND_SCHEMA.fullmatch(found.path) else []
        keeps_to_it(found, excluded)


def keeps_to_it(operation: Any, excluded: list[Any]) -> None:
    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def keeps(case: Any) -> None:
        assume(not has_whole_floats(case.body))  # a JSON schema takes 3.0 for an integer, servers in Rust do not
        assume(not has_no_time(case.body))  # and 504 is the right answer then
        assume(not has_two_limits(case.body))
        assume(not has_instruction(case.body))  # which this model has no place for
        case.call_and_validate(excluded_checks=excluded)

    keeps()


def has_whole_floats(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(has_whole_floats, value.values()))
    return isinstance(value, float) and value.is_integer()


def has_no_time(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("timeout_ms"), int) and value["timeout_ms"] < 5000


def has_instruction(value: Any) -> bool:
    return isinstance(value, dict) and any(value.get(name) for name in ("instruction", "instruct", "prompt_name"))


def has_two_limits(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.get("top_n") and value.get("top_k"))
