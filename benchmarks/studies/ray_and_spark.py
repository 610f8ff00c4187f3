"""Scoring on Ray and on Spark: the same bits as one process while workers and a node are killed, and what it costs.

    python -m benchmarks.studies.ray_and_spark ray --artifact ./tiny -o benchmarks/results/ray_and_spark.json

Needs the extras ray, spark and parquet, and Java. The Ray cluster is of three nodes on this machine, with one CPU each;
Spark runs in local mode, with two tasks at a time. Each part replaces its own figures in the record.

ray    a folder of Parquet files by `rankrt score --ray`, while an actor and a node are killed, and in one process
spark  the same folder by Spark, while a Python worker is killed, and in one process
speed  one and two actors, and one and two processes without Ray, in turn, with one thread each. The processor time of
       the driver is measured, too: it limits how many actors it can feed
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rankrt import Reranker
from rankrt.cli.bulk.chunks import Names
from rankrt.cli.bulk.cluster import connected, score_on_cluster
from rankrt.cli.bulk.columns import Columns, read_columns
from rankrt.cli.bulk.scoring import chunk_size, score_chunks, score_in_processes
from rankrt.host.cpu import this_machine
from rankrt_finetune.reports.tables import Table

WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "the",
    "giant",
    "panda",
    "is",
    "a",
    "bear",
    "of",
    "central",
    "China",
    "and",
    "eats",
    "bamboo",
    "all",
    "day",
]
N_FILES = 8
# Words of a passage, least and most.
SHORT, LONG = (3, 20), (250, 350)
LIMIT_S = 1800


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["ray", "spark", "speed"])
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--pairs", type=int, help="how many; 200,000 or 12,800 by default")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the file of the record")
    options = parser.parse_args()
    record = json.loads(options.output.read_text()) if options.output.exists() else {"benchmark": "ray_and_spark"}
    machine = this_machine()
    record["machine"] = {"processor": machine.processor, "n_threads": machine.cores.n}
    with tempfile.TemporaryDirectory() as folder:
        measure = {"ray": on_ray, "spark": on_spark, "speed": speed}[options.part]
        n_pairs = options.pairs or (12_800 if options.part == "speed" else 200_000)
        record[options.part] = measure(options.artifact.absolute(), Path(folder), n_pairs)
    text = json.dumps(record, indent=1)
    print(text)
    options.output.write_text(f"{text}\n")


def table(speed: Mapping[str, Any]) -> Table:
    """Return rows a second with and without Ray, and what a chunk costs beside its scores."""
    rates = speed["best_rows_a_second"]
    times = {name: f"{rate:,.0f} ({rate / rates['here']:.2f} times)" for name, rate in rates.items()}
    rows = [
        ["rows a second in one process, without Ray", f"{rates['here']:,.0f}"],
        ["rows a second in two processes, without Ray", times["two processes"]],
        ["rows a second with one actor", times["one actor"]],
        ["rows a second with two actors", times["two actors"]],
        [
            f"an actor's overhead, for {speed['pairs_a_chunk']} rows",
            f"{speed['overhead_of_an_actor_ms_a_chunk']:.1f} ms",
        ],
        *(
            [
                f"the driver's processor time, for {speed['pairs_a_chunk']} rows of {length} words",
                f"{ms:.1f} ms: it can feed {1e3 * speed['pairs_a_chunk'] / ms:,.0f} rows a second",
            ]
            for length, ms in speed["driver_cpu_ms_a_chunk"].items()
        ),
    ]
    return Table(heading=["measured", "on a Ray cluster of this machine"], rows=rows)


def hundred_nodes(speed: Mapping[str, Any]) -> Table:
    """Return what 100 nodes would give, derived from the overhead of a chunk and from what the driver can feed."""
    size, overhead_s = speed["pairs_a_chunk"], max(0.0, speed["overhead_of_an_actor_ms_a_chunk"] / 1e3)
    feeds = 1e3 * size / max(speed["driver_cpu_ms_a_chunk"].values())
    rows = []
    for alone in (10, 100, 1000):
        of_node = size / (size / alone + overhead_s)
        all_nodes = min(100 * of_node, feeds)
        rows.append([f"{alone:,}", f"{of_node:,.1f}", f"{all_nodes:,.0f}", f"{all_nodes / alone:.0f}"])
    return Table(heading=["rows a second of a node alone", "in the cluster", "of 100 nodes", "times one"], rows=rows)


def write_folder(folder: Path, n_pairs: int, n_words: tuple[int, int] = SHORT) -> Path:
    """Write files of pairs, with passages of so many words, the same for the same numbers."""
    import pyarrow as pa
    from pyarrow import parquet

    chance = random.Random(1)
    folder.mkdir()
    n_rows = n_pairs // N_FILES
    for number in range(N_FILES):
        columns = {
            "id": [number * n_rows + row for row in range(n_rows)],
            "query": [" ".join(chance.choices(WORDS, k=6)) for _ in range(n_rows)],
            "passage": [" ".join(chance.choices(WORDS, k=chance.randint(*n_words))) for _ in range(n_rows)],
        }
        parquet.write_table(pa.table(columns), folder / f"part-{number}.parquet")
    return folder


def on_ray(artifact: Path, folder: Path, n_pairs: int) -> dict[str, Any]:
    """Score a folder in one process and on Ray, and compare the bytes of all scores."""
    write_folder(folder / "pairs", n_pairs)
    expected = scored_by_one(artifact, folder)
    with three_nodes() as cluster:
        command = [*score_command(artifact, folder), str(folder / "ray"), "--ray", cluster.address]
        started = time.monotonic()
        killed = score_and_kill(command, folder / "ray", cluster, n_pairs)
        seconds = time.monotonic() - started
    return {
        "model": model_of(artifact),
        "n_pairs": len(expected),
        "is_equal": scores_of(folder / "ray") == expected,
        "n_nodes": 3,
        **killed,
        "seconds": round(seconds, 1),
    }


def on_spark(artifact: Path, folder: Path, n_pairs: int) -> dict[str, Any]:
    """Score a folder in one process and by Spark, and compare the bytes of all scores."""
    pairs, expected = write_folder(folder / "pairs", n_pairs), scored_by_one(artifact, folder)
    found, n_killed, seconds = score_on_spark(artifact, pairs)
    return {
        "model": model_of(artifact),
        "n_pairs": len(expected),
        "is_equal": found == expected,
        "n_workers_killed": n_killed,
        "seconds": round(seconds, 1),
    }


def score_command(artifact: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "rankrt", "score", str(artifact), str(folder / "pairs"), "--out"]


def scored_by_one(artifact: Path, folder: Path) -> Mapping[int, bytes]:
    """Return the scores of one process."""
    subprocess.run([*score_command(artifact, folder), str(folder / "one")], check=True)
    return scores_of(folder / "one")


def model_of(artifact: Path) -> str:
    with Reranker.load(artifact) as reranker:
        return f"{reranker.artifact.manifest.name} ({reranker.variant.name})"


def scores_of(folder: Path) -> Mapping[int, bytes]:
    """Return the bytes of each pair's score, by its id."""
    from pyarrow import parquet

    found = parquet.read_table(folder).select(["id", "score"]).to_pydict()
    return bytes_of(found["id"], found["score"])


def bytes_of(ids: Sequence[int], scores: Sequence[float]) -> Mapping[int, bytes]:
    import numpy as np

    return {number: np.float32(score).tobytes() for number, score in zip(ids, scores, strict=True)}


@contextlib.contextmanager
def three_nodes() -> Iterator[Any]:
    """Yield a Ray cluster of three nodes on this machine, each with one CPU."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def score_and_kill(command: Sequence[str], out: Path, cluster: Any, n_pairs: int) -> dict[str, int]:
    """Run a command that scores on a cluster; kill an actor after a quarter of the pairs, and a node after half."""
    checkpoint = out.with_name(f"{out.name}.unfinished")
    with subprocess.Popen(command) as process:
        wait_for(process, lambda: checkpoint.exists() and checkpoint.stat().st_size > 5 * n_pairs // 4)
        n_actors = kill_one("ray::Scorer")
        wait_for(process, lambda: checkpoint.stat().st_size > 5 * n_pairs // 2)
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        if process.wait(LIMIT_S):
            raise SystemExit("the command failed")
    return {"n_actors_killed": n_actors, "n_nodes_killed": 1}


def score_on_spark(artifact: Path, pairs: Path) -> tuple[Mapping[int, bytes], int, float]:
    """Score with Spark, whose tasks may fail three times; kill a Python worker in the middle of a batch."""
    import threading

    from pyspark.sql import SparkSession

    from rankrt.integrations.spark import RankrtScorer

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2,4]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.ui.showConsoleProgress", "false")
    builder = builder.config("spark.driver.host", "127.0.0.1")  # a firewall may be before the host's other address
    session = builder.config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()
    killed: list[int] = []

    def kill() -> None:
        limit = time.monotonic() + LIMIT_S
        while not sum(killed) and time.monotonic() < limit:
            time.sleep(0.1)
            killed.append(kill_one("pyspark.daemon", least_cpu_s=4))

    killer = threading.Thread(target=kill)
    try:
        frame = RankrtScorer(str(artifact)).transform(session.read.parquet(str(pairs)))
        started = time.monotonic()
        killer.start()
        found = frame.select("id", "score").toPandas()
        seconds = time.monotonic() - started
    finally:
        killer.join()
        session.stop()
    return bytes_of(found["id"].tolist(), found["score"].tolist()), sum(killed), seconds


def kill_one(name: str, *, least_cpu_s: float = 0) -> int:
    """Kill a process of a name, started by this one, that has worked for so long; return how many were killed."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            if name in " ".join(child.cmdline()) and child.cpu_times().user >= least_cpu_s:
                child.kill()
                return 1
    return 0


def wait_for(process: subprocess.Popen[bytes], has_happened: Callable[[], bool]) -> None:
    """Wait until something has happened while a process runs."""
    limit = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < limit:
        try:
            if has_happened():
                return
        except FileNotFoundError:
            pass
        time.sleep(0.01)
    raise SystemExit("it ended before a process could be killed; give more --pairs")


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that work takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def speed(artifact: Path, folder: Path, n_pairs: int) -> dict[str, Any]:
    """Measure rows a second here and on Ray, in turn, with one thread each; what starting costs is left out."""
    pairs = write_folder(folder / "pairs", n_pairs)
    long_pairs = write_folder(folder / "long", n_pairs // 4, LONG)
    rates: dict[str, list[float]] = {"here": [], "two processes": [], "one actor": [], "two actors": []}
    driver_s: list[float] = []
    with three_nodes() as cluster, Reranker.load(artifact, n_threads=1) as reranker, connected(cluster.address):
        size = chunk_size(reranker)

        def chunks(pairs: Path = pairs) -> Iterator[Columns]:
            for file in sorted(pairs.iterdir()):
                yield from read_columns(str(file), "parquet", Names(), size, has_all=False)

        for _ in range(3):
            rates["here"].append(rate(score_chunks(reranker, chunks()), skipped=4)[0])
            rates["two processes"].append(rate(score_in_processes(reranker, 2, chunks()), skipped=8)[0])
            for n_actors, name in ((1, "one actor"), (2, "two actors")):
                found, driver = rate(score_on_cluster(reranker, n_actors, 1, chunks()), skipped=4 * n_actors)
                rates[name].append(found)
                driver_s.append(driver * size)
        _, driver = rate(score_on_cluster(reranker, 2, 1, chunks(long_pairs)), skipped=4)
    best = {name: max(found) for name, found in rates.items()}
    return {
        "model": model_of(artifact),
        "n_pairs": n_pairs,
        "pairs_a_chunk": size,
        "rows_a_second": {name: round(median(found), 1) for name, found in rates.items()},
        "best_rows_a_second": {name: round(found, 1) for name, found in best.items()},
        "overhead_of_an_actor_ms_a_chunk": round(1e3 * size * (1 / best["one actor"] - 1 / best["here"]), 2),
        "driver_cpu_ms_a_chunk": {
            "{} to {}".format(*SHORT): round(1e3 * median(driver_s), 2),
            "{} to {}".format(*LONG): round(1e3 * driver * size, 2),
        },
    }


def rate(scored: Iterator[Any], *, skipped: int) -> tuple[float, float]:
    """Return rows a second, and this process's processor time a row, without the first chunks: actors start then."""
    for _ in range(skipped):
        next(scored)
    started, started_cpu, n_rows = time.monotonic(), time.process_time(), 0
    for part in scored:
        n_rows += len(part)
    return n_rows / (time.monotonic() - started), (time.process_time() - started_cpu) / n_rows


if __name__ == "__main__":
    main()
