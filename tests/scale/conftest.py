"""A Ray cluster of three nodes and a Spark session, on this machine, for all tests that need one."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WORDS = ["zero", "one", "two", "three", "four"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def _cache_of_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Give processes that are started once the cache of the tests, and the modules of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKRT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")  # the server for Ray's client forks; its handlers crash at times
        yield patch


@pytest.fixture(scope="session")
def cluster(_cache_of_workers: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three nodes with one CPU each, and a server for Ray's client; this process is not connected to them.

    One node claims to have a GPU: Ray believes the number that a node is started with.
    """
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": free_port()}
    found = Cluster(initialize_head=True, head_node_args=head)
    found.add_node(num_cpus=1)
    found.add_node(num_cpus=1, num_gpus=1)
    yield found
    found.shutdown()


@pytest.fixture(scope="session")
def session(_cache_of_workers: pytest.MonkeyPatch) -> Iterator[Any]:
    """Spark with two tasks at a time, each of which may fail once."""
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    found = spark_session()
    yield found
    found.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def spark_session(**options: str) -> Any:
    import shutil

    from pyspark.sql import SparkSession

    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2,2]").config("spark.ui.enabled", "false")
    for name, value in {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1", **options}.items():
        builder = builder.config(name, value)
    found = builder.getOrCreate()
    found.sparkContext.setLogLevel("OFF")
    return found
