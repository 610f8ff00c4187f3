"""The generated parts of README.md and docs/: what commands print, what measurements say.

python -m scripts.docs          write them again
python -m scripts.docs --check  fail if that would change anything
"""

import argparse
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.lines import PACKED, PADDED, RANKRT
from benchmarks.gpu.report import ceiling_said, latencies, report, speeds
from benchmarks.records.record import Record, Row, read_record, schema
from benchmarks.records.report import markdown
from benchmarks.records.statistics import ratio
from benchmarks.studies.adapters import table as adapters_table
from benchmarks.studies.int8_drift import table as int8_drift_table
from benchmarks.studies.llm_speed import table as llm_speed_table
from benchmarks.studies.progressive import table as progressive_table
from benchmarks.studies.ray_and_spark import hundred_nodes as hundred_nodes_table
from benchmarks.studies.ray_and_spark import table as scaling_table
from benchmarks.studies.resident import table as resident_table
from rankrt.cli.main import main as rankrt
from rankrt.cli.main import program
from rankrt_finetune.reports.tables import Table, figure
from tiny_reranker.evaluation import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCHEMA = ROOT / "benchmarks" / "records" / "record.schema.json"
TINY = ROOT / "tiny_reranker"
# All systems, on a Zen 5.
FULL = "bge-reranker-v2-m3"
# The fastest systems of every precision, on a Zen 4, as the small models.
NEWEST = "bge-reranker-v2-m3-zen4"
LARGE = (NEWEST, "bge-reranker-base")
# On a GPU, when short runs were recorded as CUDA graphs; and before, with the stages that the newer one leaves out.
ON_GPU, FIRST_ON_GPU = "bge-reranker-v2-m3-h100", "bge-reranker-v2-m3-h100-first"
_GPU_SYSTEMS = {
    f"{RANKRT} without recordings": "rankrt",
    RANKRT: "rankrt with recordings, which it does not have",
    PACKED: "PyTorch, packed",
    PADDED: "transformers",
}
SMALL = ("minilm-l6", "minilm-l12", "modernbert-base")
_WEIGHTS = {"minilm-l6": "fine-tuned weights"}
# The systems of other makers by the precision that they compute in. sentence-transformers lets OpenVINO take bf16 where
# the processor multiplies it, as that of these records does.
CLASSES = {
    "fp32": {
        *("torch-eager", "torch-sdpa", "torch-compile", "sentence-transformers-torch", "sentence-transformers-onnx"),
        *("flagembedding-no-probe", "flagembedding-shipped", "optimum-exported", "openvino-fp32", "fastembed"),
    },
    "bf16": {"torch-bf16", "sentence-transformers-openvino"},
    "int8": {"torch-int8", "onnxruntime-int8", "openvino-int8", "llama.cpp-q8"},
}
SHOWN = {
    "rankrt-int8": "rankrt, int8",
    "openvino-int8": "OpenVINO, int8",
    "rankrt-bf16": "rankrt, bf16",
    "sentence-transformers-openvino": "sentence-transformers with OpenVINO, bf16",
    "rankrt-fp32": "rankrt, fp32",
    "openvino-fp32": "OpenVINO, fp32",
    "sentence-transformers-onnx": "sentence-transformers with ONNX Runtime",
    "torch-sdpa": "PyTorch",
    "sentence-transformers-torch": "sentence-transformers",
    "flagembedding-shipped": "FlagEmbedding",
}
INT8 = {
    "rankrt-int8": "rankrt, int8",
    "rankrt-fp32": "rankrt, fp32",
    "rankrt-avx2-int8": "rankrt, int8, the graph for AVX2",
    "onnxruntime-int8": "ONNX Runtime, `quantize_dynamic`",
    "torch-int8": "PyTorch, `quantize_dynamic`",
    "openvino-int8": "OpenVINO, NNCF",
    "llama.cpp-q8": "llama.cpp, q8_0",
    "sentence-transformers-torch": "sentence-transformers, fp32",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)} is {'out of date; run: make docs' if options.check else 'written'}")
        if not options.check:
            path.write_text(text)
    return int(options.check and bool(stale))


def generated() -> Mapping[Path, str]:
    """Return the text of every file that is generated, in whole or in parts."""
    written = {path: _with_parts(path.read_text(), parts) for path, parts in PARTS.items()}
    reports = {path.with_suffix(".md"): markdown([read_record(path)]) for path in _records()}
    on_gpu = {RESULTS / f"{name}.md": report(_gpu_record(name)) for name in (ON_GPU, FIRST_ON_GPU)}
    return {**written, **reports, **on_gpu, ROOT / "docs" / "cli.md": cli(), SCHEMA: schema()}


def gpu() -> str:
    """Return what was measured on a GPU: speeds, requests and pairs of text."""
    record = _gpu_record(ON_GPU)
    conditions = record["conditions"]
    card = conditions["gpu"].partition(" (")[0]
    software = conditions["software"].partition(", ")[2]
    requests = latencies(record, _GPU_SYSTEMS)
    texts = [[line["name"], figure(line["figures"]["pairs_per_s"])] for line in record["stages"]["texts"]["lines"]]
    return (
        f"{conditions['model']}, on an {card} with driver {conditions['driver']}, {software}."
        f" {ceiling_said(record)} [The record](../benchmarks/results/{ON_GPU}.md).\n\n{speeds(record)}\n"
        f"Milliseconds of a request of so many rows x tokens, in fp16:\n\n{requests}\n"
        "Pairs of text a second, with tokenization on 16 cores, in 13 languages, of 256 tokens on average:\n\n"
        f"{Table(heading=['', 'pairs/s'], rows=texts).markdown()}"
    )


def _gpu_record(name: str) -> Mapping[str, Any]:
    record: Mapping[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def _records() -> list[Path]:
    """Return the committed results that are records of runs; the others are of scripts with one purpose."""
    return [path for path in sorted(RESULTS.glob("*.json")) if '"schema_version"' in path.read_text()]


def _with_parts(text: str, parts: Mapping[str, Callable[[], str]]) -> str:
    for name, make in parts.items():
        text = with_part(text, name, make())
    return text


def with_part(text: str, name: str, content: str) -> str:
    """Return a text with the part between its markers replaced."""
    pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)"
    replaced, n_found = re.subn(pattern, lambda match: f"{match[1]}{content}{match[2]}", text, flags=re.DOTALL)
    if n_found != 1:
        raise ValueError(f"expected one part {name!r}, found {n_found}")
    return replaced


def cli() -> str:
    """Return the help of all commands as Markdown."""
    parts = ["# The command line", "", "Generated from the commands themselves: `make docs`."]
    parts += ["What they read and write: [files](files.md).", ""]
    for command in ("", *program.commands):
        parts += [f"## rankrt {command}".rstrip(), "", "```", _help_of(command).rstrip(), "```", ""]
    return "\n".join(parts)


def speed() -> str:
    """Return rankrt beside what people use, class by class, as a table."""
    record = read_record(RESULTS / f"{NEWEST}.json")
    shown = f"{_throughput(record, SHOWN).markdown()}\n{_conditions(record)}"
    how = f"{shown} The processor decides how slow PyTorch is: [all systems, and how](docs/benchmarks.md)."
    return f"{how}\n\n{_on_a_gpu(_gpu_record(ON_GPU))}\n"


def _on_a_gpu(record: Mapping[str, Any]) -> str:
    """Return in a sentence how many passages a GPU scores, beside PyTorch."""
    lines = [line for stage in ("speed", "peers") for line in record["stages"][stage]["lines"]]
    rows_per_s = {
        line["name"]: line["figures"]["rows_per_s"] for line in lines if line["figures"].get("rows") == "passages"
    }
    ours = rows_per_s[RANKRT]
    padded, packed = (ours / rows_per_s[name] for name in (PADDED, PACKED))
    return (
        f"On an {record['conditions']['gpu'].partition(' (')[0]} rankrt scores {ours:,.0f} passages a second in fp16:"
        f" {padded:.2f} times as many as transformers, whose rows are sorted and padded, and {packed:.2f} times as many"
        " as PyTorch without padding. [GPUs](docs/gpu.md)."
    )


def all_speeds() -> str:
    """Return every system's throughput with the full model, and how near it comes to the machine's rate."""
    record = read_record(RESULTS / f"{FULL}.json")
    return f"{_all_speeds(record)} {_shares(record)} [The record](../benchmarks/results/{FULL}.md).\n"


def speeds_of(names: Sequence[str]) -> str:
    """Return every system's throughput with each of these models."""
    return "\n".join(
        f"{_all_speeds(read_record(RESULTS / f'{name}.json'))} [The record](../benchmarks/results/{name}.md).\n"
        for name in names
    )


def _all_speeds(record: Record) -> str:
    """Return every system's throughput as a table, the fastest at its best first, what has no value last."""
    best: dict[str, float] = {}
    for row in record.of("throughput"):
        times = float("inf") if row.reason else row.metrics["times_baseline"] or float("inf")
        best[row.system] = min(times, best.get(row.system, float("inf")))
    named = {system: f"`{system}`" for system in sorted(best, key=best.__getitem__)}
    return f"{_throughput(record, named).markdown()}\n{_conditions(record)}"


def classes() -> str:
    """Return rankrt beside the fastest peer of each class of precision, by how far scores are from PyTorch's."""
    rows: list[list[str]] = []
    for name in (FULL, *LARGE, *SMALL):
        record = read_record(RESULTS / f"{name}.json")
        found = {(row.system, row.given): row for row in record.of("throughput") if not row.reason}
        for precision, members in CLASSES.items():
            if (ours := found.get((f"rankrt-{precision}", "as shipped"))) is None:
                continue
            cells = [
                _fastest([row for (system, how), row in found.items() if system in members and how == given], ours)
                for given in ("as shipped", "at its best")
            ]
            if any(cells):
                rows.append([f"{name}, {precision}", _pace_and_drift(ours), *cells])
    heading = ["model, class", "rankrt", "fastest peer as shipped", "fastest peer, sorted, best batch size"]
    return (
        f"{Table(heading=heading, rows=rows).markdown()}\nPairs a second, and the largest difference of a logit from"
        " PyTorch's in fp32. x is the peer's time relative to rankrt's in the same class: above 1, rankrt is faster.\n"
    )


def _fastest(peers: Sequence[Row], ours: Row) -> str:
    """Return the fastest of some systems, with its speed beside rankrt's."""
    if not peers:
        return ""
    best = min(peers, key=lambda row: row.metrics["times_baseline"] or float("inf"))
    return f"`{best.system}`: {_pace_and_drift(best)}, {_relative(best, ours):.2f} x"


def _pace_and_drift(row: Row) -> str:
    return f"{_pace(row)}, {figure(row.metrics['max_drift'], 2)}"


def int8_speed() -> str:
    """Return int8 beside fp32 and beside the int8 of other systems, as a table."""
    record = read_record(RESULTS / f"{FULL}.json")
    return (
        f"{_throughput(record, INT8).markdown()}\n{_conditions(record)} Random weights drift more than trained ones."
        f" All layers are in int8 here. [The record](../benchmarks/results/{FULL}.md).\n"
    )


def _throughput(record: Record, titles: Mapping[str, str]) -> Table:
    """Return the systems' speeds beside rankrt's in fp32, as shipped and at their best, and how far scores are."""
    rows: dict[tuple[str, str], Row] = {
        (row.system, row.given): row for row in record.of("throughput") if row.case.endswith("mixed")
    }
    ours = rows["rankrt-fp32", "as shipped"]
    size = f"{ours.case} passages, {ours.size['n_tokens']:,.0f} tokens"
    return Table(
        heading=[f"one query, {size}", "as shipped", "sorted, best batch size", "largest difference"],
        rows=[
            [title, *_cells(rows, system, ours)] for system, title in titles.items() if (system, "as shipped") in rows
        ],
    )


def _cells(rows: Mapping[tuple[str, str], Row], system: str, ours: Row) -> list[str]:
    shipped = rows[system, "as shipped"]
    if shipped.reason:
        return [shipped.reason, "", ""]
    best = rows.get((system, "at its best"), shipped)
    return [_speed(shipped, ours), _speed(best, ours), figure(shipped.metrics["max_drift"], 2)]


def _speed(row: Row, ours: Row) -> str:
    """Return pairs a second, and the time relative to ours, both against the baseline's calls in between."""
    return row.reason or f"{_pace(row)}, {_relative(row, ours):.2f} x"


def _pace(row: Row) -> str:
    return f"{figure(row.size['n_passages'] / float(np.median(row.seconds)), 2)} pairs/s"


def _relative(row: Row, ours: Row) -> float:
    return ratio(row.seconds, row.baseline_seconds) / ratio(ours.seconds, ours.baseline_seconds)


def _conditions(record: Record) -> str:
    model, machine = record.model, record.machine
    weights = _WEIGHTS.get(model.name, "random weights")
    return (
        f"{model.name}'s shape ({model.n_parameters / 1e6:.0f} M parameters, {weights}) on"
        f" {machine.n_threads} cores of an {machine.processor} ({machine.instructions[-1]}), tokenization included."
        f" Medians; each system took turns with {record.baseline}. x is the time relative to rankrt's in fp32. The last"
        " column is the largest difference of a logit from PyTorch's in fp32."
    )


def _shares(record: Record) -> str:
    """Say how near single rows come to the machine's rate at matrix products."""
    ours = [row for row in record.of("roofline") if row.system == "rankrt-fp32" and row.size["n_tokens"] >= 128]
    shares, alone = (
        " and ".join(f"{row.metrics[name]:.0%}" for row in ours) for name in ("of_sgemm_from_memory", "of_sgemm_alone")
    )
    lengths = " and ".join(f"{row.size['n_tokens']:.0f}" for row in ours)
    return (
        f"One row of {lengths} tokens reaches {shares} of the machine's rate at a model's matrix products: the best of"
        f" MLAS, MKL and OpenBLAS in the same run. With weights that never leave the caches it is {alone}."
    )


def memory() -> str:
    """Return what a model of 568 M parameters takes."""
    rows = [[row["what"], row["value"]] for row in _result("memory")["rows"]]
    return Table(heading=["bge-reranker-v2-m3's shape, fp32", ""], rows=rows).markdown()


def resident() -> str:
    """Return what a process with int8 holds, part by part, before and after real text."""
    record = _result("resident")
    what = f"bge-reranker-v2-m3's shape, {record['precision']}, {record['n_pairs']:,} pairs; the kernel's Pss."
    return f"{resident_table(record['found']).markdown()}\n{what}\n"


def int8_drift() -> str:
    """Return what int8 costs in scores, as a table."""
    return int8_drift_table(_result("int8_drift")["rows"]).markdown()


def server_overhead() -> str:
    """Return what the server costs over the library, a model a column."""
    record = _result("server_overhead")
    machine, models = record["machine"], record["models"]
    heading = ["", *(f"{model['model']}, {model['variant'].partition('-')[2]}" for model in models)]
    rows = [[what, *(of(model) for model in models)] for what, of in _OVERHEAD.items()]
    table = Table(heading=heading, rows=rows).markdown()
    return (
        f"{table}\n{machine['n_threads']} cores of an {machine['processor']}, load {machine['load_before']:.1f} before;"
        " the clients ran on the same cores. [The record](../benchmarks/results/server_overhead.json).\n"
    )


def _saturated(model: Mapping[str, Any]) -> str:
    found = model["saturation"]
    speeds = [f"{found[f'{side}_tokens_per_second']:,.0f}" for side in ("in_process", "server")]
    spread = f"{found['ratio_min']:.2f} to {found['ratio_max']:.2f}"
    return f"{speeds[0]} and {speeds[1]}: {found['ratio']:.0%} ({spread})"


def _processor_time(model: Mapping[str, Any]) -> str:
    found = model["saturation"]
    here, server, workers, clients = (
        figure(found[f"{side}_cpu_us_per_token"], 2) for side in ("in_process", "server", "workers", "clients")
    )
    return f"{here}; {server} + {workers}, clients {clients}"


def _idle(model: Mapping[str, Any]) -> str:
    found = model["idle"]
    return (
        f"{found['in_process_ms']:.1f} and {found['server_ms']:.1f}: {found['difference_ms']:.1f} more,"
        f" {found['client_cpu_ms']:.1f} of it the client's"
    )


def _mixed(model: Mapping[str, Any]) -> str:
    found = model["mixed"]
    return f"{found['p50_ms']:.0f} and {found['p99_ms']:.0f}, of {found['n_small']}; alone {found['idle_ms']:.0f}"


_OVERHEAD: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "tokens a second, library and server at saturation (of the rounds)": _saturated,
    "processor time, us a token: library; server + workers": _processor_time,
    "one request of 10 documents, ms, library and server": _idle,
    "10 documents beside 500, at half the throughput: median and p99, ms": _mixed,
}


def server_soak() -> str:
    """Return what the server went through, in a sentence or two."""
    record = _result("server_soak")
    answered, refused = (
        sum(n for status, n in record["statuses"].items() if (status == "200") == is_good) for is_good in (True, False)
    )
    return (
        f"{record['seconds'] / 60:.0f} minutes: {record['n_requests']:,} requests, {answered:,} answered"
        f" bit-identically, {refused:,} refused (429, 503 or 504), {len(record['wrong'])} wrong or without an answer;"
        f" {sum(record['faults'].values()):,} requests of misbehaving clients; {record['worker_restarts']:.0f} workers"
        f" started again. The server had {record['server_mb_first_third']:.0f} MB in the first third of the time and"
        f" {record['server_mb_last_third']:.0f} MB in the last. [The record](../benchmarks/results/server_soak.json).\n"
    )


def replicas() -> str:
    """Return several servers with HAProxy in front, by load and by query, as a table."""
    record = _result("replicas")
    lines = [
        "| servers | backend | from the cache | processor time, ms a request | answers a second | p50, ms | p99, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {case['servers']} | `{case['backend']}` | {case['cache_hit_share']:.0%} | {case['server_cpu_ms']:.1f}"
        f" | {case['goodput_per_s']:.0f} | {case['p50_ms']:.0f} | {case['p99_ms']:.0f} |"
        for case in record["cases"]
    ]
    machine = record["machine"]
    return "\n".join(lines) + (
        f"\n\n{record['model']} in int8. {record['n_questions']:,} questions with {record['n_documents']} documents"
        f" each, asked by Zipf's law; `--cache-mb {record['cache_mb']}`. Latencies are of"
        f" {record['offered_per_s']:.0f} requests a second in every case. Servers, HAProxy and clients shared"
        f" {machine['n_processors']} cores of an {machine['processor']}, load {machine['load_before']} before."
        " So four servers have more memory for scores than two, and no more processors."
        " [The record](../benchmarks/results/replicas.json).\n"
    )


def llm_speed() -> str:
    """Return the LLM rerankers beside FlagEmbedding, as a table."""
    if not (RESULTS / "llm_speed.json").exists():
        return "No record is kept yet: `python -m benchmarks.studies.llm_speed`.\n"
    record = _result("llm_speed")
    machines = {entry["conditions"]["machine"]["processor"] for entry in record["models"]}
    sizes = {entry["conditions"]["workload"]["kind"] for entry in record["models"]}
    return (
        f"{llm_speed_table(record)}\nFull width, random weights, {' and '.join(sorted(sizes))} passages for one query,"
        f" {' and '.join(sorted(machines))}. Medians, in turn, without the batch that FlagEmbedding computes twice."
        " x is the time relative to rankrt's. Full depth is derived from the weights that a token meets; for"
        " FlagEmbedding they include the vocabulary.\n"
    )


def adapters() -> str:
    """Return what the adapters for frameworks add to a call, as a table."""
    record = _result("adapters")
    model, machine = record["model"], record["machine"]
    return (
        f"{adapters_table(record).markdown()}\nA call ranks {record['n_documents']} documents of"
        f" {record['n_tokens']:,} tokens in all with {model['name']} ({model['variant']}) in"
        f" {record['rank_ms']:.0f} ms, on {machine['n_threads']} cores of an {machine['processor']}."
        " Weights are random. The least of many calls.\n"
    )


def _bits(found: Mapping[str, Any]) -> str:
    return "the bits of one process" if found["is_equal"] else "other scores than by one process"


def scaling() -> str:
    """Return what an actor of Ray costs, and what follows for 100 nodes."""
    record = _result("ray_and_spark") if (RESULTS / "ray_and_spark.json").exists() else {}
    parts = []
    if (ray := record.get("ray")) is not None:
        parts.append(
            f"On a Ray cluster of {ray['n_nodes']} nodes, {ray['n_pairs']:,} pairs got {_bits(ray)}, while"
            f" {ray['n_actors_killed']} actor and {ray['n_nodes_killed']} node were killed.\n"
        )
    if (spark := record.get("spark")) is not None:
        parts.append(
            f"In Spark's local mode, {spark['n_pairs']:,} pairs got {_bits(spark)}, while"
            f" {spark['n_workers_killed']} Python worker was killed.\n"
        )
    if (speed := record.get("speed")) is not None:
        machine = record["machine"]
        parts += [
            scaling_table(speed).markdown(),
            f"The model is {speed['model']}, on {machine['n_threads']} cores of an {machine['processor']}. Each actor"
            " has one thread.\n",
            hundred_nodes_table(speed).markdown(),
        ]
    return "\n".join(parts) or "No record is kept yet: `python -m benchmarks.studies.ray_and_spark`.\n"


def progressive() -> str:
    """Return what ranking that stops early saves and loses, as a table."""
    if not (RESULTS / "progressive.json").exists():
        return "No record is kept yet: `python -m benchmarks.studies.progressive`.\n"
    record = _result("progressive")
    return (
        f"{progressive_table(record)}\nA trained layerwise model of 8 layers with exits after"
        f" {', '.join(map(str, record['exits']))}. {record['n_queries']} held-out questions in twelve languages, each"
        f" with {record['n_passages']} passages. The margins are those of {record['n_queries_of_margins']} other"
        " questions.\n"
    )


def quality() -> str:
    """Return how the tiny reranker ranks, as a table."""
    return table(json.loads((TINY / "evaluation.json").read_text())["quality"])


PARTS: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "README.md": {"speed": speed},
    ROOT / "docs" / "benchmarks.md": {
        "all speeds": all_speeds,
        "large speeds": partial(speeds_of, LARGE),
        "small speeds": partial(speeds_of, SMALL),
        "classes": classes,
    },
    ROOT / "docs" / "gpu.md": {"gpu": gpu},
    ROOT / "docs" / "int8.md": {"int8 speed": int8_speed, "int8 drift": int8_drift},
    ROOT / "docs" / "integrations.md": {"adapters": adapters},
    ROOT / "docs" / "deployment.md": {"replicas": replicas},
    ROOT / "docs" / "llm-rerankers.md": {"llm speed": llm_speed, "progressive": progressive},
    ROOT / "docs" / "memory.md": {"memory": memory, "resident": resident},
    ROOT / "docs" / "scaling.md": {"scaling": scaling},
    ROOT / "docs" / "server.md": {"server overhead": server_overhead, "server soak": server_soak},
    TINY / "README.md": {"quality": quality},
}


def _result(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def _help_of(command: str) -> str:
    os.environ["COLUMNS"] = "110"
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        rankrt([*command.split(), "--help"])
    return output.getvalue()


if __name__ == "__main__":
    sys.exit(main())
