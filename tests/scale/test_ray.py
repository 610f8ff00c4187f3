"""Ray Data and Ray Serve over rankrt, on a real cluster."""

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from rankrt import ArtifactError, InputError, Reranker
from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Artifact
from tests.scale.conftest import WORDS, free_port
from tests.support import tiny_artifact

ray: Any = pytest.importorskip("ray", reason="ray is not installed")
adapters: Any = pytest.importorskip("rankrt.integrations.ray")

pytestmark = pytest.mark.filterwarnings("ignore")
# Serve looks at the last half second, and decides at once; by default it takes 30 s to grow and 10 minutes to shrink.
QUICK = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 1,
    "metrics_interval_s": 0.1,
    "look_back_period_s": 0.5,
    "upscale_delay_s": 0.2,
    "downscale_delay_s": 0.5,
}


@pytest.fixture(scope="module")
def connected(cluster: Any) -> Iterator[Any]:
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_artifact(tmp_path_factory.mktemp("ray") / "tiny").folder)


def rows(n: int) -> Any:
    found = [{"id": i, "question": "one", "passage": " ".join([WORDS[i % 5]] * (1 + i % 9))} for i in range(n)]
    return ray.data.from_items(found, override_num_blocks=4)


def test_actors_of_ray_data_give_the_bits_of_one_process(connected: Any, folder: str):
    scored = rows(300).map_batches(
        adapters.RankrtScorer,
        fn_constructor_kwargs={"model": folder, "query_column": "question"},
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=64,
    )
    found = sorted(scored.take_all(), key=lambda row: row["id"])
    with Reranker.load(folder) as reranker:
        expected = reranker.score([(row["question"], row["passage"]) for row in found])
    assert [row["score"] for row in found] == expected.tolist()


def test_a_column_that_is_missing_is_named_to_the_caller(connected: Any, folder: str):
    scored = rows(4).map_batches(adapters.RankrtScorer, fn_constructor_args=(folder,), concurrency=1)
    with pytest.raises(Exception, match="there is no column 'query'; the columns are 'id', 'question', 'passage'"):
        scored.take_all()


def test_a_loaded_reranker_is_sent_as_its_recipe(connected: Any, artifact: Artifact):
    actor = ray.remote(adapters.RankrtScorer).options(num_cpus=1)
    with Reranker.load(artifact.folder) as reranker:
        handle = actor.remote(reranker, score_column="s")
        batch = {"query": ["one"], "passage": ["two"]}
        assert ray.get(handle.__call__.remote(batch))["s"].tolist() == [3.0]
    ray.kill(handle)


def test_a_gpu_that_a_node_only_claims_to_have_is_an_error_and_not_a_slow_score(connected: Any, folder: str):
    actor = ray.remote(adapters.RankrtScorer).options(num_cpus=0, num_gpus=1, max_restarts=0).remote(folder)
    with pytest.raises(Exception, match=r"DeviceError: device 'cuda:0' needs .*"):
        ray.get(actor.__call__.remote({"query": ["one"], "passage": ["two"]}), timeout=60)


def test_outside_of_an_actor_nothing_is_given_by_ray(artifact: Artifact):
    scorer = adapters.RankrtScorer(str(artifact.folder), max_length=32)
    assert scorer.reranker.rules.max_length == 32
    assert scorer({"query": ["one"], "passage": ["two"]})["score"].tolist() == [3.0]


def test_options_for_a_loaded_reranker_are_refused(reranker: Reranker):
    with pytest.raises(InputError, match="load_options are for a model that is loaded here"):
        adapters.RankrtScorer(reranker, precision="fp32")


class TestServe:
    """A deployment with one replica, asked by its handle and by HTTP."""

    @pytest.fixture(scope="class")
    def handle(self, connected: Any, folder: str) -> Iterator[Any]:
        serving: Any = pytest.importorskip("rankrt.server.ray_serve", reason="ray[serve] is not installed")
        from ray import serve

        serve.start(http_options={"port": free_port()})
        yield serve.run(serving.application(f"tiny={folder}", num_replicas=1, max_length=64), name="rankrt")
        serve.shutdown()

    def test_a_handle_ranks_and_scores_as_a_reranker(self, handle: Any, folder: str):
        with Reranker.load(folder) as reranker:
            ranking = reranker.rank("one", WORDS, top_n=3)
            assert handle.rank.remote("one", WORDS, top_n=3).result(timeout_s=60) == list(ranking)
            pairs = [("one", word) for word in WORDS]
            found = handle.score.remote(pairs, normalize=True).result(timeout_s=60)
            assert found.tobytes() == reranker.score(pairs, normalize=True).tobytes()

    def test_requests_that_come_together_all_get_their_scores(self, handle: Any):
        asked = [handle.score.remote([("one", word)] * 8) for word in WORDS * 20]
        assert [one.result(timeout_s=60).tolist() for one in asked] == [[1.0 + i % 5] * 8 for i in range(100)]

    def test_an_empty_query_is_the_library_s_error(self, handle: Any):
        with pytest.raises(InputError, match="the query is empty"):
            handle.rank.remote(" ", WORDS).result(timeout_s=60)

    def test_the_paths_are_those_of_the_server(self, handle: Any):
        found = _asked_by_http(f"{_address()}/v1/rerank", {"query": "one", "documents": WORDS, "top_n": 2})
        assert [hit["index"] for hit in found["results"]] == [4, 3]
        with urllib.request.urlopen(f"{_address()}/ready", timeout=60) as response:
            assert json.load(response) == {"status": "ready", "models": ["tiny"]}

    def test_replicas_grow_under_load_and_shrink_after_it_and_lose_no_request(self, handle: Any, folder: str):
        """Four callers ask at once until a second replica runs; then two ask now and then until it has gone."""
        from ray import serve

        from rankrt.server.ray_serve import application

        app = application(f"tiny={folder}", autoscaling_config=QUICK)
        asked = serve.run(app, name="growing", route_prefix="/growing")
        score = asked.score
        address = f"{_address()}/growing/v1/rerank"
        found: list[tuple[list[str], Float32Array]] = []
        has_grown, has_shrunk = threading.Event(), threading.Event()

        def call(number: int) -> None:
            while not has_grown.is_set() or (number < 2 and not has_shrunk.is_set()):
                words = [" ".join(WORDS[(number + i) % 5] for _ in range(1 + len(found) % 9)) for i in range(20)]
                if number % 2:
                    scores = _scores_by_http(address, words)
                else:
                    pairs = [("one", word) for word in words]
                    scores = score.remote(pairs, normalize=True).result(timeout_s=60)
                found.append((words, scores))
                time.sleep(0.05 if has_grown.is_set() else 0)

        with ThreadPoolExecutor(4) as callers:
            calls = [callers.submit(call, number) for number in range(4)]
            try:
                _wait_for_replicas(2)
                has_grown.set()
                _wait_for_replicas(1)
            finally:
                has_grown.set()
                has_shrunk.set()
        asked.shutdown()  # it tells Serve of its requests ten times a second, as long as this process lives
        serve.delete("growing")
        for one in calls:
            one.result()
        with Reranker.load(folder) as reranker:
            for words, scores in found:
                expected = reranker.score([("one", word) for word in words], normalize=True)
                assert scores.tobytes() == expected.tobytes()

    def test_a_replica_that_is_taken_away_has_the_time_that_a_request_may_take(self, folder: str):
        from rankrt.server.limits import Limits
        from rankrt.server.ray_serve import application

        app = application(folder, settings={"limits": Limits(timeout_ms=90_000)})
        assert app._bound_deployment._deployment_config.graceful_shutdown_timeout_s == 95

    def test_a_replica_whose_model_is_not_there_does_not_start(self):
        from rankrt.server.models import Served
        from rankrt.server.ray_serve import served
        from rankrt.server.service import Settings

        async def start() -> None:
            app = served(Settings(models=[Served(source="./none")], n_workers=0))
            async with app.router.lifespan_context(app):
                pytest.fail("it started")

        with pytest.raises(ArtifactError, match="none"):
            asyncio.run(start())

    def test_a_range_and_a_number_of_replicas_contradict_each_other(self, folder: str):
        from rankrt.server.ray_serve import application

        with pytest.raises(InputError, match="num_replicas is a fixed number and autoscaling_config a range"):
            application(folder, num_replicas=2, autoscaling_config={"max_replicas": 3})


def _address() -> str:
    from ray import serve

    return f"http://127.0.0.1:{serve.context._get_global_client().http_config.port}"


def _asked_by_http(address: str, body: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def _scores_by_http(address: str, documents: Sequence[str]) -> Float32Array:
    hits = _asked_by_http(address, {"query": "one", "documents": documents})["results"]
    in_order = sorted(hits, key=lambda hit: int(hit["index"]))
    return np.array([hit["relevance_score"] for hit in in_order], np.float32)


def _wait_for_replicas(n: int) -> None:
    from ray import serve

    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        states = serve.status().applications["growing"].deployments["rankrt"].replica_states
        if states == {"RUNNING": n}:
            return
        time.sleep(0.1)
    pytest.fail(f"there are not {n} replicas after 60 s: {states}")
