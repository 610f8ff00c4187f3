"""What operators see and do: health, figures, logs, keys, swaps, several models, pages."""

import json
import logging
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from rankrt import InputError  # noqa: E402
from rankrt.host.cpu import this_machine  # noqa: E402
from rankrt.kernels import kernels_in_use  # noqa: E402
from rankrt.loading.kernels import these_kernels  # noqa: E402
from rankrt.server.http import pages  # noqa: E402
from rankrt.server.http.app import App  # noqa: E402
from rankrt.server.keys import ApiKeys  # noqa: E402
from rankrt.server.limits import Limits  # noqa: E402
from rankrt.server.models import LoadOptions, Served  # noqa: E402
from rankrt.server.telemetry.logs import JsonLines  # noqa: E402
from rankrt.server.telemetry.tracing import OtlpTracer  # noqa: E402
from tests.server.support import reload, serving, serving_with_service, wait_until  # noqa: E402
from tests.support import POINTS, calibrate, tiny_artifact  # noqa: E402

BODY = {"query": "one", "texts": ["two"]}


def figure(page: str, name: str) -> float:
    (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found)


def test_health_and_readiness(client: Any):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready", "models": ["tiny"]}


def test_what_is_not_there_is_said_in_json(client: Any):
    response = client.delete("/rerank")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["message"] == "this path takes another method; see /docs"


def test_a_path_that_is_not_there_answers_what_any_client_reads(client: Any):
    response = client.get("/nothing")
    found = response.json()
    assert response.status_code == 404
    assert found["detail"] == found["message"] == found["error"]["message"]
    assert found["detail"] == "this path does not exist; see /docs"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/embeddings", "does not make embeddings"),
        ("/v1/chat/completions", "does not generate text"),
        ("/v1/inference/BAAI/bge-reranker-v2-m3", "POST /v1/rerank"),
        ("/v3/rerank", "POST /v2/rerank"),
        ("/v1/retrieval/nvidia/model/reranking", "POST /v1/ranking"),
        ("/api/v1/services/rerank/text-rerank/text-rerank", "POST /v1/rerank"),
        ("/decode", "/tokenize"),
        ("/v1/rerank/rerank", "is repeated"),
        ("/v1/v1/rerank", "is repeated"),
    ],
)
def test_a_path_of_another_interface_is_told_which_of_ours_to_use(client: Any, path: str, said: str):
    assert said in client.post(path, json={}).json()["detail"]


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/tei/nothing", {"error", "error_type"}),
        ("/jina/v1/nothing", {"detail"}),
        ("/cohere/v2/nothing", {"message"}),
        ("/vllm/nothing", {"error"}),
        ("/rankrt/nothing", {"kind", "message"}),
        ("/voyage/v1/nothing", {"detail"}),
    ],
)
def test_below_a_dialect_s_prefix_it_is_said_in_its_words(client: Any, path: str, keys: set[str]):
    response = client.post(path, json={})
    assert (response.status_code, set(response.json())) == (404, keys)


@pytest.mark.parametrize(
    "path",
    ["/models", "/v1/models", "/openai/v1/models", "/vllm/v1/models", "/llamacpp/v1/models", "/jina/v1/models"],
)
def test_models_are_listed_as_openai_s_clients_read_them(client: Any, path: str):
    found = client.get(path).json()
    assert found["object"] == "list"
    (model,) = found["data"]
    assert time.time() - model.pop("created") < 3600
    assert model == {
        "id": "tiny",
        "object": "model",
        "owned_by": "rankrt",
        "root": "tests/tiny",
        "parent": None,
        "max_model_len": 64,
    }


def test_rankrt_s_own_list_says_what_requests_may_ask_for(tmp_path: Path):
    calibrate(tiny_artifact(tmp_path / "fitted", max_length=100))
    tiny_artifact(tmp_path / "plain")
    load = LoadOptions(max_length=50, rules={"long_documents": "chunk"})
    with serving(f"fitted={tmp_path / 'fitted'}", f"plain={tmp_path / 'plain'}", load=load) as address:
        fitted, plain = httpx.get(f"{address}/rankrt/v1/models").json()["data"]
    assert (fitted["id"], fitted["precision"], fitted["device"]) == ("fitted", "fp32", "cpu")
    assert (fitted["max_model_len"], fitted["longest"], fitted["long_documents"]) == (50, 100, "chunk")
    assert (fitted["calibrated"], plain["calibrated"], plain["longest"]) == (True, False, 64)


def test_one_artifact_is_served_in_two_precisions_at_once(tmp_path: Path):
    tiny_artifact(tmp_path / "tiny", precisions=["fp32", "int8"], points={"int8": 2 * POINTS})
    with serving(f"{tmp_path / 'tiny'}@fp32", f"quick={tmp_path / 'tiny'}@int8") as address:
        models = httpx.get(f"{address}/rankrt/v1/models").json()["data"]
        assert [(model["id"], model["precision"]) for model in models] == [("tiny@fp32", "fp32"), ("quick", "int8")]
        body = {"query": "one", "documents": ["two"]}
        found = [httpx.post(f"{address}/rankrt/rerank", json=body | {"model": model["id"]}) for model in models]
    assert [answer.json()["results"][0]["score"] for answer in found] == [3.0, 6.0]
    assert [answer.json()["variant"] for answer in found] == ["cpu-fp32", "cpu-int8-avx2"]


@pytest.mark.skipif(
    these_kernels().why_not_first("int8", this_machine()) is not None, reason="kernels are not first on this processor"
)
def test_a_graph_with_kernels_is_served_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tiny_artifact(tmp_path / "tiny", for_kernels=["int8"])
    with caplog.at_level(logging.INFO, "rankrt.server"), serving(tmp_path / "tiny") as address:
        answer = httpx.post(f"{address}/rankrt/rerank", json={"query": "one", "documents": ["two"]}).json()
    assert (answer["variant"], answer["results"][0]["score"]) == ("cpu-int8-kernels", 3.0)
    assert f"tiny is ready: cpu-int8-kernels with {kernels_in_use()}" in caplog.text


@pytest.mark.parametrize(
    ("text", "served"),
    [
        ("owner/name@int8", Served(source="owner/name", precision="int8")),
        ("a=./b@fp32", Served(source="./b", name="a", precision="fp32")),
        ("./b@2024", Served(source="./b@2024")),
        ("./b@int8/", Served(source="./b@int8/")),
        ("./a=b@bf16", Served(source="./a=b", precision="bf16")),
    ],
)
def test_a_model_is_named_with_its_precision_and_other_signs_are_a_part_of_the_path(text: str, served: Served):
    assert Served.parse(text) == served


def test_models_are_listed_as_cohere_and_infinity_do(client: Any):
    (model,) = client.get("/cohere/v1/models").json()["models"]
    assert (model["name"], model["endpoints"], model["context_length"]) == ("tiny", ["rerank"], 64.0)
    (model,) = client.get("/infinity/models").json()["data"]
    assert (model["id"], model["capabilities"], model["dtype"], model["device"]) == ("tiny", ["rerank"], "fp32", "cpu")
    assert model["stats"] == {"queue_fraction": 0.0, "queue_absolute": 0, "results_pending": 0, "batch_size": 256}


def test_each_dialect_s_health_says_whether_the_server_can_rank(client: Any):
    assert set(client.get("/infinity/health").json()) == {"unix"}
    assert client.get("/llamacpp/health").json() == {"status": "ok"}
    for path in ("/tei/health", "/vllm/health"):
        response = client.get(path)
        assert (response.status_code, response.content) == (200, b"")


def test_kserve_s_paths_say_whether_the_server_and_a_model_are_ready(client: Any, tiny_folder: Path):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    with serving(tiny_folder, f"other={tiny_folder}") as address:
        assert httpx.get(f"{address}/v2/models/other/ready").json() == {"name": "other", "ready": True}
        response = httpx.get(f"{address}/v2/models/third/ready")
    said = {"error": "no model is called third; there are tiny, other"}
    assert (response.status_code, response.json()) == (404, said)


def test_kserve_s_paths_are_503_until_a_worker_can_score(tiny_folder: Path):
    with serving_with_service(tiny_folder) as (address, service):
        service.is_stopping = True
        answers = {path: httpx.get(f"{address}{path}") for path in ("/v2/health/ready", "/v2/models/tiny/ready")}
        live = httpx.get(f"{address}/v2/health/live")
    assert [(a.status_code, a.json()["ready"]) for a in answers.values()] == [(503, False)] * 2
    assert live.status_code == 200


def test_info_tells_the_server_s_own_limits(tiny_folder: Path):
    with serving(tiny_folder, limits=Limits(max_connections=7, max_documents=50)) as address:
        info = httpx.get(f"{address}/info").json()
    assert (info["max_concurrent_requests"], info["max_client_batch_size"]) == (7, 50)
    assert (info["max_batch_tokens"], info["tokenization_workers"], info["served_model_name"]) == (256, 2, "tiny")


def test_a_model_is_called_after_the_hub_s_or_the_artifact_s_folder_and_never_the_checkpoint_s(tmp_path: Path):
    for folder, source in (("ours", "checkpoint"), ("theirs", "owner/bge-tiny")):
        tiny_artifact(tmp_path / folder)
        manifest = json.loads((tmp_path / folder / "rankrt.json").read_text())
        manifest["source"]["id"], manifest["name"] = source, Path(source).name
        (tmp_path / folder / "rankrt.json").write_text(json.dumps(manifest))
    (tmp_path / "current").symlink_to("ours")
    with serving(tmp_path / "ours", tmp_path / "theirs", tmp_path / "current") as address:
        names = [model["id"] for model in httpx.get(f"{address}/v1/models").json()["data"]]
        body = {"query": "one", "documents": ["two"], "model": "owner/bge-tiny"}
        assert httpx.post(f"{address}/v1/rerank", json=body).json()["model"] == "bge-tiny"
    assert names == ["ours", "bge-tiny", "current"]


@pytest.mark.parametrize(("given", "is_kept"), [("abc-123", True), ("a b", False), ("x" * 65, False)])
def test_a_request_id_is_kept_if_it_is_fit_for_a_log(client: Any, given: str, is_kept: bool):
    response = client.post("/rerank", json=BODY, headers={"x-request-id": given})
    assert (response.headers["x-request-id"] == given) is is_kept


def test_metrics_count_what_happened(tiny_folder: Path):
    with serving(tiny_folder, cache_bytes=1 << 20) as address:
        for texts in (["two", "three " * 99], ["two"], ["nan"], []):
            httpx.post(f"{address}/rerank", json={"query": "one", "texts": texts})
        page = httpx.get(f"{address}/metrics").text
    assert figure(page, 'rankrt_requests_total{dialect="tei",model="tiny",status="200"}') == 2
    assert figure(page, 'rankrt_errors_total{dialect="tei",kind="score"}') == 1
    assert figure(page, 'rankrt_errors_total{dialect="tei",kind="empty"}') == 1
    assert figure(page, 'rankrt_tokens_total{source="computed"}') == 70
    assert figure(page, 'rankrt_tokens_total{source="cached"}') == 6
    assert figure(page, 'rankrt_truncated_total{role="document"}') == 1
    assert figure(page, 'rankrt_request_seconds_count{stage="inference"}') == 2
    assert figure(page, "rankrt_cache_hits_total") == 1
    assert figure(page, "rankrt_queue_tokens") == 0
    assert figure(page, "process_resident_memory_bytes") > 1e6
    assert "two" not in page


def test_a_log_line_has_the_figures_and_never_the_text(client: Any, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "rankrt.server.requests")
    client.post("/rerank", json={"query": "secret", "texts": ["hidden", "words"]}, headers={"x-request-id": "mine"})
    (record,) = [r for r in caplog.records if getattr(r, "request_id", "") == "mine"]
    line = json.loads(JsonLines().format(record))
    assert (line["status"], line["dialect"], line["n_documents"], line["n_tokens"]) == (200, "tei", 2, 12)
    assert {"seconds", "queue_seconds", "inference_seconds", "tokenization_seconds"} <= set(line)
    assert not re.search("secret|hidden|words", json.dumps(line))


def test_keys_are_asked_for_where_there_are_some(tiny_folder: Path, tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst-key\n\nsecond-key\n")
    with serving(tiny_folder, keys=ApiKeys.read(file)) as address:
        for path, body in (("/rerank", BODY), ("/v2/rerank", {}), ("/v1/rerank/stream", {})):
            response = httpx.post(address + path, json=body)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert httpx.post(f"{address}/rerank", json=BODY, headers={"authorization": "Bearer no"}).status_code == 401
        assert httpx.post(f"{address}/rerank", json=BODY, headers={"authorization": "second-key"}).status_code == 401
        for key in ("first-key", "second-key"):
            headers = {"authorization": f"Bearer {key}"}
            assert httpx.post(f"{address}/rerank", json=BODY, headers=headers).status_code == 200
        assert [httpx.get(f"{address}/{path}").status_code for path in ("health", "ready", "metrics", "")] == [200] * 4
        assert httpx.get(f"{address}/info").status_code == 401


def test_a_file_without_keys_is_an_error_and_not_an_open_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").write_text("# nothing\n")
    for name in ("empty", "missing"):
        with pytest.raises(InputError):
            ApiKeys.read(tmp_path / name)
    monkeypatch.setenv("RANKRT_API_KEY", "from-there")
    assert ApiKeys.read(None).allow("Bearer from-there")
    assert not ApiKeys.read(None).allow(None)
    assert not ApiKeys.read(None).allow("Bearer \udcff")


def test_keys_are_read_again_and_kept_where_there_are_none(tmp_path: Path):
    path = tmp_path / "keys"
    path.write_text("old\n", encoding="utf-8-sig")
    keys = ApiKeys.read(path)
    assert keys.allow("Bearer old")
    path.write_text("new\n")
    keys.read_again()
    assert keys.allow("Bearer new")
    assert not keys.allow("Bearer old")
    path.write_text("# none\n")
    with pytest.raises(InputError, match="holds no key"):
        keys.read_again()
    assert keys.allow("Bearer new")


def test_other_origins_may_not_ask_unless_they_are_named(tiny_folder: Path, address: str):
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in httpx.post(f"{address}/rerank", json=BODY, headers=asked).headers
    with serving(tiny_folder, cors_origins=["https://a.example"]) as other:
        found = httpx.options(f"{other}/rerank", headers=asked)
        assert found.headers["access-control-allow-origin"] == "https://a.example"
        asked["origin"] = "https://b.example"
        assert "access-control-allow-origin" not in httpx.options(f"{other}/rerank", headers=asked).headers


def test_several_models_are_chosen_by_name(tiny_folder: Path, tmp_path: Path):
    other = tiny_artifact(tmp_path / "doubled", points={"fp32": POINTS * 2})
    with serving(tiny_folder, f"doubled={other.folder}") as address:
        body = {"query": "one", "documents": ["two"]}
        scores = {
            model: httpx.post(f"{address}/llamacpp/rerank", json=body | {"model": model}).json()
            for model in ("tiny", "doubled", "none")
        }
        assert scores["tiny"]["results"][0]["relevance_score"] == 3.0
        assert scores["doubled"]["results"][0]["relevance_score"] == 6.0
        assert scores["none"]["error"]["message"] == "no model is called none; there are tiny, doubled"
        assert scores["none"]["error"]["code"] == 404
        assert httpx.post(f"{address}/rerank", json=BODY).status_code == 200, "without a name it is the first"


def test_an_artifact_is_swapped_without_dropping_a_request(tmp_path: Path):
    folder = tmp_path / "served"
    tiny_artifact(folder)
    statuses: list[tuple[int, float]] = []
    with serving_with_service(folder) as (address, service):
        is_over = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=address) as client:
                while not is_over.is_set():
                    found = client.post("/llamacpp/rerank", json={"query": "one", "documents": ["two"]})
                    statuses.append((found.status_code, found.json()["results"][0]["relevance_score"]))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(statuses) > 20)
        shutil.rmtree(folder)
        tiny_artifact(folder, points={"fp32": POINTS * 2})
        reload(service)
        n_before = len(statuses)
        wait_until(lambda: len(statuses) > n_before + 20)
        is_over.set()
        for thread in threads:
            thread.join()
        assert {status for status, _ in statuses} == {200}
        assert {score for _, score in statuses} == {3.0, 6.0}
        assert len(service.workers[0]._backends) == 1, "the one of before was released"
        found = httpx.post(f"{address}/llamacpp/rerank", json={"query": "one", "documents": ["two"]})
        assert found.json()["results"][0]["relevance_score"] == 6.0


def test_a_swap_that_fails_keeps_what_there_is(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "served"
    tiny_artifact(folder)
    with serving_with_service(folder) as (address, service):
        (folder / "rankrt.json").write_text("{}")
        reload(service)
        assert "the artifacts of before are kept" in caplog.text
        assert httpx.post(f"{address}/rerank", json=BODY).status_code == 200


def test_a_model_that_answers_no_numbers_is_no_model_to_serve(tmp_path: Path):
    broken = tiny_artifact(tmp_path / "broken", points={"fp32": np.full_like(POINTS, np.nan)})
    with serving_with_service(broken.folder) as (address, service):
        assert "nan" in str(service.error)
        assert httpx.get(f"{address}/ready").status_code == 503
        assert httpx.post(f"{address}/rerank", json=BODY).status_code == 503


def test_traces_hang_below_the_client_s_own(tiny_folder: Path):
    testing = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="needs otel")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra otel")
    exporter = testing.InMemorySpanExporter()
    trace = "0af7651916cd43dd8448eb211c80319c"
    with serving(tiny_folder, tracer=OtlpTracer("http://127.0.0.1:1", exporter)) as address:
        httpx.post(f"{address}/rerank", json=BODY, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"POST /rerank", "tokenization", "queue", "inference"}
    assert all(f"{span.context.trace_id:032x}" == trace for span in spans.values())
    root = spans["POST /rerank"]
    assert f"{root.parent.span_id:016x}" == "b7ad6b7169203331"
    assert spans["queue"].parent.span_id == root.context.span_id
    assert root.start_time <= spans["inference"].start_time <= spans["inference"].end_time <= root.end_time
    assert "two" not in str(root.attributes)


@pytest.mark.parametrize("path", [*pages.playground(), "/docs"])
def test_pages_load_nothing_from_elsewhere(client: Any, path: str):
    page = client.get(path)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
    assert page.headers["content-type"].startswith(kind.get(path.rpartition(".")[2], "text/html"))
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page.text)


def test_the_interface_describes_every_path_and_every_error(tiny_folder: Path):
    with serving_with_service(tiny_folder) as (address, service):
        described = httpx.get(f"{address}/openapi.json").json()["paths"]
        page = httpx.get(f"{address}/docs").text
        routes: Any = App(service).starlette().routes
    answered = {(route.path, method) for route in routes for method in route.methods if method != "HEAD"}
    answered -= {(path, "GET") for path in (*pages.playground(), "/docs", "/openapi.json")}
    assert answered == {(path, method.upper()) for path, methods in described.items() for method in methods}
    statuses = {"401", "404", "413", "415", "422", "429", "503", "504"}
    assert all(statuses <= set(methods["post"]["responses"]) for methods in described.values() if "post" in methods)
    for path, method in answered:
        assert f"<b>{method}</b> <code>{path}</code>" in page
        assert f"curl http://localhost:8080{path}" in page
