"""Decoders that are served on a CPU: their scores are bitwise the library's, however the queue divides the rows."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
httpx: Any = pytest.importorskip("httpx", reason="needs httpx")
made: Any = pytest.importorskip("tests.export.decoders", reason="needs the export extra")

from rankrt import Reranker  # noqa: E402
from rankrt.artifact.precisions import Precision  # noqa: E402
from rankrt.backends import cpu_decoder, cpu_lanes  # noqa: E402
from rankrt.cli.main import main  # noqa: E402
from rankrt.scoring import sigmoid  # noqa: E402
from rankrt.server.limits import Limits  # noqa: E402
from rankrt.server.models import LoadOptions  # noqa: E402
from rankrt_export.job import job  # noqa: E402
from rankrt_export.pipeline import Options, export  # noqa: E402
from rankrt_export.text.texts import parse  # noqa: E402
from tests.server.support import serving, serving_with_service, wait_until  # noqa: E402

pytestmark = pytest.mark.export

QUERIES = ["why does the tide rise?", "who?", "what is a moon " * 10]
PASSAGES = [f"{i} pull of the moon " * (i % 7 + (i > 0)) for i in range(40)]
INSTRUCTION = "Find the sentence that explains it"


@pytest.fixture(scope="module", autouse=True)
def _few_texts() -> Iterator[None]:
    """A row is a byte a token here: the sample's long ones would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        few = parse(b'{"query": "why?", "pos": ["so", "so it is"], "neg": ["no", "maybe, who knows"]}', "few")
        patch.setattr(job, "sample", lambda: few)
        yield


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoders")
    return export(str(made.make_decoder(folder / "qwen", "Qwen3")), folder / "artifact", Options()).folder


@pytest.fixture(scope="module")
def layerwise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layerwise")
    return export(str(made.make_layerwise(folder / "minicpm")), folder / "a", Options(cutoff_layers=[3, 6])).folder


@pytest.fixture(scope="module", params=[0, 1, 2], ids=["here", "a worker", "two workers"])
def address(request: pytest.FixtureRequest, qwen: Path, _session_cache: None) -> Iterator[str]:
    with serving(qwen, n_workers=request.param) as found:
        yield found


def served(address: str, query: str, passages: list[str], **fields: Any) -> list[float]:
    """Return the logits of passages, in their order."""
    body = {"query": query, "documents": passages, **fields}
    response = httpx.post(f"{address}/rankrt/rerank", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return [hit["score"] for hit in sorted(response.json()["results"], key=lambda hit: hit["index"])]


def scored(folder: Path, query: str, passages: list[str], **options: Any) -> list[float]:
    """Return what `Reranker.rank` gives for the same texts, in their order."""
    asked = {name: options.pop(name) for name in ("instruction", "prompt_name") if name in options}
    with Reranker.load(folder, **options) as reranker:
        ranking = reranker.rank(query, passages, **asked)
        return [hit.score for hit in sorted(ranking, key=lambda hit: hit.index)]


def same(found: list[float], expected: list[float]) -> bool:
    return np.array(found, np.float32).tobytes() == np.array(expected, np.float32).tobytes()


def test_a_query_with_many_documents_has_the_library_s_scores(qwen: Path, address: str):
    assert same(served(address, QUERIES[0], PASSAGES), scored(qwen, QUERIES[0], PASSAGES))


def test_requests_that_run_beside_each_other_have_the_library_s_scores(qwen: Path, address: str):
    asks = [(query, PASSAGES[first:]) for query in QUERIES for first in (0, 20, 39)]
    with ThreadPoolExecutor(len(asks)) as pool:
        found = list(pool.map(lambda ask: served(address, *ask), asks))
    for (query, passages), scores in zip(asks, found, strict=True):
        assert same(scores, scored(qwen, query, passages))


def test_an_instruction_has_the_library_s_scores(qwen: Path, address: str):
    plain = served(address, QUERIES[0], PASSAGES[:5])
    expected = scored(qwen, QUERIES[0], PASSAGES[:5], instruction=INSTRUCTION)
    for field in ("instruction", "instruct"):
        assert same(served(address, QUERIES[0], PASSAGES[:5], **{field: INSTRUCTION}), expected)
    assert not same(plain, expected)
    response = httpx.post(
        f"{address}/v1/rerank",
        json={"query": QUERIES[0], "documents": PASSAGES[:5], "instruction": INSTRUCTION, "use_activation": False},
    )
    hits = sorted(response.json()["results"], key=lambda hit: hit["index"])
    assert same([hit["relevance_score"] for hit in hits], expected), response.text


def test_pairs_of_several_queries_have_the_library_s_scores(qwen: Path, address: str):
    pairs = [(QUERIES[i % 3], passage) for i, passage in enumerate(PASSAGES)]
    body = {"text_1": [query for query, _ in pairs], "text_2": [text for _, text in pairs], "use_activation": False}
    response = httpx.post(f"{address}/score", json=body, timeout=60)
    with Reranker.load(qwen) as reranker:
        assert same([found["score"] for found in response.json()["data"]], reranker.score(pairs).tolist())


def test_a_stream_and_a_partial_answer_have_the_library_s_scores(qwen: Path, address: str):
    expected = scored(qwen, QUERIES[1], PASSAGES)
    assert same(served(address, QUERIES[1], PASSAGES, timeout_ms=60_000, partial_results=True), expected)
    body = {"query": QUERIES[1], "documents": PASSAGES}
    text = httpx.post(f"{address}/v1/rerank/stream", json=body, timeout=60).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    hits = sorted((event for event in events if "relevance_score" in event), key=lambda hit: hit["index"])
    assert same([hit["relevance_score"] for hit in hits], sigmoid(np.array(expected, np.float32)).tolist())


def test_windows_of_long_documents_have_the_library_s_scores(qwen: Path, _session_cache: None):
    passages = [passage * 20 for passage in PASSAGES[:12]]
    rules = {"long_documents": "chunk"}
    with serving(qwen, load=LoadOptions(rules=rules)) as address:
        assert same(served(address, QUERIES[0], passages), scored(qwen, QUERIES[0], passages, **rules))


@pytest.mark.parametrize("layer", [None, 3, 6])
def test_a_layerwise_model_is_served_up_to_a_layer(layerwise: Path, _session_cache: None, layer: int | None):
    expected = scored(layerwise, QUERIES[0], PASSAGES, cutoff_layer=layer)
    for n_workers in (0, 1):
        with serving(layerwise, n_workers=n_workers, load=LoadOptions(cutoff_layer=layer)) as address:
            assert same(served(address, QUERIES[0], PASSAGES), expected)


def test_a_lightweight_model_is_served_with_compressed_passages(tmp_path: Path, _session_cache: None):
    options = Options(cutoff_layers=[3, 5], compress_layers=[2, 3], compress_ratio=2)
    light = export(str(made.make_lightweight(tmp_path / "light")), tmp_path / "artifact", options).folder
    with serving(light, n_workers=1) as address:
        for layer in (None, 3):
            expected = scored(light, QUERIES[0], PASSAGES, cutoff_layer=layer)
            assert same(served(address, QUERIES[0], PASSAGES, cutoff_layer=layer), expected)


def test_a_request_may_ask_for_another_layer(layerwise: Path, _session_cache: None):
    layers = [None, 3, 6, 3]
    expected = {layer: scored(layerwise, QUERIES[0], PASSAGES, cutoff_layer=layer) for layer in layers}
    with serving(layerwise, n_workers=1, cache_bytes=1 << 20) as address:
        for _ in range(2):  # the second time from the cache
            with ThreadPoolExecutor(len(layers)) as pool:
                found = pool.map(lambda layer: served(address, QUERIES[0], PASSAGES, cutoff_layer=layer), layers)
            assert all(same(scores, expected[layer]) for layer, scores in zip(layers, found, strict=True))
        body = {"query": "why?", "documents": ["so"], "cutoff_layer": 4}
        refused = httpx.post(f"{address}/rankrt/rerank", json=body)
        assert refused.status_code in (400, 422)
        assert re.search(
            r"cutoff layer 4: cpu-fp32\S* was exported with 3, 6; use one of these", refused.json()["message"]
        )
    assert not same(expected[3], expected[6])


def test_a_request_computes_no_layer_after_its_own(
    layerwise: Path, _session_cache: None, monkeypatch: pytest.MonkeyPatch
):
    """The model has two segments, up to layers 3 and 6."""
    stops: list[int] = []
    through = cpu_decoder.Segments.through

    def noted(*arguments: Any, stop: int, **options: Any) -> Any:
        stops.append(stop)
        return through(*arguments, stop=stop, **options)

    monkeypatch.setattr(cpu_decoder.Segments, "through", noted)
    with serving(layerwise) as address:
        for layer, stop in ((3, 1), (6, 2), (None, 2)):
            stops.clear()
            served(address, QUERIES[0], PASSAGES[:9], cutoff_layer=layer)
            assert set(stops) == {stop}


def test_the_last_layer_shares_scores_with_requests_that_name_none(layerwise: Path, _session_cache: None):
    body = {"query": QUERIES[0], "documents": PASSAGES[:5]}
    with serving(layerwise, cache_bytes=1 << 20) as address:
        first = httpx.post(f"{address}/rankrt/rerank", json=body, timeout=60).json()
        named = httpx.post(f"{address}/rankrt/rerank", json=body | {"cutoff_layer": 6}, timeout=60).json()
        other = httpx.post(f"{address}/rankrt/rerank", json=body | {"cutoff_layer": 3}, timeout=60).json()
    assert named["results"] == first["results"]
    assert named["n_cached_tokens"] == named["n_tokens"]
    assert other["n_cached_tokens"] < other["n_tokens"], "each layer has scores of its own"


def test_limits_and_deadlines_hold_for_each_layer(layerwise: Path, _session_cache: None):
    many = {"query": QUERIES[0], "documents": [f"{i} {PASSAGES[i % 40]}" for i in range(800)]}
    expected = scored(layerwise, QUERIES[1], PASSAGES[:5], cutoff_layer=3)
    with (
        serving_with_service(layerwise, limits=Limits(max_documents=800)) as (address, service),
        ThreadPoolExecutor(1) as pool,
    ):

        def ask(layer: int, **changes: Any) -> Any:
            body = many | {"cutoff_layer": layer, **changes}
            return httpx.post(f"{address}/rankrt/rerank", json=body, timeout=120)

        long = pool.submit(ask, 6)
        wait_until(lambda: service.scheduler.queue.n_rows > 100)
        assert same(served(address, QUERIES[1], PASSAGES[:5], cutoff_layer=3), expected)
        assert not long.done(), "a short request does not wait for a long one to a later layer"
        partial = ask(3, query="when?", timeout_ms=300, partial_results=True).json()
        assert partial["is_partial"]
        late = ask(3, query="where?", timeout_ms=50)
        assert late.status_code in (429, 504), "it is refused at once, or when its time is over"
        refused = ask(3, documents=[*many["documents"], "one more"])
        assert "too many documents: 801 (limit 800)" in refused.json()["message"]
        assert long.result().status_code == 200


@pytest.mark.parametrize("precision", ["w8", "int4"])
def test_a_model_with_small_weights_is_served(tmp_path: Path, _session_cache: None, precision: Precision):
    checkpoint = made.make_decoder(tmp_path / "gemma", "Gemma", hidden_size=64, intermediate_size=96)
    folder = export(str(checkpoint), tmp_path / "artifact", Options(precisions=["fp32", precision])).folder
    with serving(folder, load=LoadOptions(precision=precision)) as address:
        assert same(served(address, QUERIES[0], PASSAGES), scored(folder, QUERIES[0], PASSAGES, precision=precision))


def test_tokens_that_rows_share_count_once(qwen: Path, _session_cache: None):
    with Reranker.load(qwen) as reranker:
        ranking = reranker.rank(QUERIES[0], PASSAGES)
    with serving(qwen) as address:
        body = {"query": QUERIES[0], "documents": PASSAGES}
        answer = httpx.post(f"{address}/rankrt/rerank", json=body, timeout=60).json()
    assert answer["n_tokens"] == ranking.n_tokens + ranking.n_saved_tokens
    # The library finds a prefix in all rows at once, the server block by block: each computes it once.
    assert answer["n_cached_tokens"] == ranking.n_saved_tokens


def test_requests_of_other_queries_do_not_compute_the_prompt_again(
    qwen: Path, _session_cache: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cpu_lanes, "_IDLE_S", 600)
    computed: list[int] = []
    through = cpu_decoder.Segments.through

    def counted(self: Any, sessions: Any, batch: cpu_decoder.Batch, *rest: Any, **options: Any) -> Any:
        computed.append(int(batch.offsets[-1]))
        return through(self, sessions, batch, *rest, **options)

    queries = ["tides?", "moons?", "winds?"]
    with Reranker.load(qwen) as reranker:
        encoded = reranker.encode([(query, passage) for query in queries for passage in PASSAGES[:6]])
        expected = reranker.score([(query, passage) for query in queries for passage in PASSAGES[:6]])
    n_prompt, n_own = int(encoded.passage_starts[0]), int((encoded.lengths - encoded.passage_starts)[:6].sum())
    monkeypatch.setattr(cpu_decoder.Segments, "through", counted)
    with serving(qwen) as address:
        for number, query in enumerate(queries):
            computed.clear()
            assert same(served(address, query, PASSAGES[:6]), expected[6 * number : 6 * number + 6].tolist())
            assert n_own < sum(computed) < n_own + n_prompt / 2, "the warm-up has left it for the first, too"


def test_what_a_request_leaves_frees_the_queue(qwen: Path, _session_cache: None):
    with serving_with_service(qwen) as (address, service):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/rankrt/rerank", json={"query": "x", "documents": PASSAGES * 100}, timeout=0.05)
        assert same(served(address, QUERIES[0], PASSAGES), scored(qwen, QUERIES[0], PASSAGES))
        queue = service.scheduler.queue
        assert (queue.n_tokens, queue.n_own, queue.n_rows, queue.jobs) == (0, 0, 0, [])
        assert not queue._n_waiting
        assert not queue._in_progress


def test_a_layer_that_is_not_an_exit_is_refused_before_anything_starts(
    layerwise: Path, qwen: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["serve", str(layerwise), "--port", "0", "--cutoff-layer", "7"]) == 1
    assert re.search(r"cutoff layer 7: cpu-fp32\S* was exported with 3, 6; use one of these", capsys.readouterr().err)
    assert main(["serve", str(qwen), "--port", "0", "--cutoff-layer", "1"]) == 1
    assert re.search(r"cutoff layer 1: cpu-fp32\S* was exported with 3", capsys.readouterr().err)


def test_a_layer_of_a_model_without_layers_is_refused_before_anything_starts(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["serve", str(tiny_folder), "--port", "0", "--cutoff-layer", "1"]) == 1
    assert "cutoff layers are for layerwise models; cpu-fp32 has one score" in capsys.readouterr().err


def test_a_precision_that_the_artifact_lacks_is_refused_before_anything_starts(
    qwen: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["serve", str(qwen), "--port", "0", "--precision", "int4"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "int4" in error


def test_rows_longer_than_the_model_takes_are_refused_before_anything_starts(
    qwen: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["serve", str(qwen), "--port", "0", "--max-length", "100000"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "100000" in error


def test_a_model_without_a_place_for_an_instruction_says_so(layerwise: Path, _session_cache: None):
    with serving(layerwise) as address:
        body = {"query": "why?", "documents": ["so"], "instruction": INSTRUCTION}
        response = httpx.post(f"{address}/rankrt/rerank", json=body)
        assert response.status_code in (400, 422)
        assert "without a place for an instruction" in response.text
