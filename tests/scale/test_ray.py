"""Ray Data and Ray Serve over rankrt, on a real cluster."""

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from rankrt import ArtifactError, InputError, Reranker
from rankrt.artifact.manifest import Artifact
from tests.scale.conftest import WORDS, free_port
from tests.support import tiny_artifact

ray: Any = pytest.importorskip("ray", reason="ray is not installed")
adapters: Any = pytest.importorskip("rankrt.integrations.ray")

pytestmark = pytest.mark.filterwarnings("ignore")


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
    """Ray believes the number that a node is started with."""
    node = connected.add_node(num_cpus=1, num_gpus=1)
    actor = ray.remote(adapters.RankrtScorer).options(num_cpus=0, num_gpus=1, max_restarts=0).remote(folder)
    with pytest.raises(Exception, match=r"DeviceError: device 'cuda:0' needs .*"):
        ray.get(actor.__call__.remote({"query": ["one"], "passage": ["two"]}), timeout=60)
    connected.remove_node(node)


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
        from ray import serve

        address = f"http://127.0.0.1:{serve.context._get_global_client().http_config.port}"
        body = json.dumps({"query": "one", "documents": WORDS, "top_n": 2}).encode()
        request = urllib.request.Request(f"{address}/v1/rerank", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            found = json.load(response)
        assert [hit["index"] for hit in found["results"]] == [4, 3]
        with urllib.request.urlopen(f"{address}/ready", timeout=60) as response:
            assert json.load(response) == {"status": "ready", "models": ["tiny"]}

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
