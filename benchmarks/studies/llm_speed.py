"""The LLM rerankers in all precisions and FlagEmbedding's own classes, in turn, on mixed lengths.

    python -m benchmarks.studies.llm_speed ./gemma-6 ./minicpm-12 --text ../shared/data \
        -o benchmarks/results/llm_speed.json

A model is exported to CHECKPOINT.artifact, in `--precisions`, unless that exists. int8 takes minutes to calibrate. Each
system has a process and a pinned environment of its own, and the same threads and text. The batch that FlagEmbedding
computes twice is not counted. A round calls every system once. A warm-up call comes first and also finds
FlagEmbedding's better batch size. The record is written after every round. A run continues a record of the same
conditions, so it may be stopped at any time.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.environments import cache_folder, python_of
from benchmarks.harness.lab import pinned_cpus, sha256_of_files
from benchmarks.harness.worker import Budget, Worker
from benchmarks.harness.workloads import Source, Workload, read
from benchmarks.records.statistics import ratio
from benchmarks.systems import DECODERS, entry_of
from rankrt.artifact.manifest import open_artifact
from rankrt.artifact.precisions import PRECISIONS, Precision
from rankrt.artifact.source import Hub
from rankrt.host.cpu import this_machine
from rankrt_export.checkpoint.checkpoint import open_checkpoint
from rankrt_export.checkpoint.families import LAYERWISE
from rankrt_export.pipeline import Options, export
from rankrt_finetune.reports.tables import Table, figure

BASELINE = "llm-rankrt"
TITLES = {
    "llm-rankrt": "rankrt",
    "llm-rankrt-unshared": "rankrt, query not shared",
    "llm-rankrt-w8": "rankrt, w8",
    "llm-rankrt-int8": "rankrt, int8",
    "llm-rankrt-int4": "rankrt, int4",
    "llm-flagembedding": "FlagEmbedding {batch_size} at a time",
}
# The models whose depth is cut to fit a machine.
_FULL = {"GemmaForCausalLM": ("v2-gemma", 18), "LayerWiseMiniCPMForCausalLM": ("v2-minicpm-layerwise", 40)}
_PAUSE_S = 0.3  # longer than any library's threads spin after a call
_CALL_LIMIT_S = 900.0


def main() -> None:
    options = _options()
    record = _read(options.output)
    texts = read(options.text)[1]
    for checkpoint in options.checkpoints:
        artifact = _export(checkpoint, options.precisions)
        workload = Source(texts, checkpoint / "tokenizer.json").make("mixed", options.passages)
        with ExitStack() as stack:
            systems = _systems(options.systems, artifact)
            conditions = _conditions(checkpoint, artifact, workload, systems)
            entry = _entry(record, conditions)
            if len(entry["seconds"].get(BASELINE, [])) >= options.rounds:
                continue
            workers = {name: _worker(name, checkpoint, artifact, stack) for name in systems}
            batch_sizes = warm_up(workers, workload, entry)
            while len(entry["seconds"][BASELINE]) < options.rounds:
                one_round(workers, workload, batch_sizes, entry)
                _write(record, options.output)
    print(json.dumps(record))


def warm_up(workers: Mapping[str, Worker], workload: Workload, entry: dict[str, Any]) -> dict[str, int | None]:
    """Call every system once in each of its batch sizes; return its fastest. Notes versions and differences."""
    fastest: dict[str, int | None] = {}
    scores = {}
    for name, worker in workers.items():
        took = {}
        for size in entry_of(name).batch_sizes or (None,):
            answer = worker.call(workload.query, workload.passages, workload.max_length, size)
            took[size], scores[name] = answer.seconds, np.array(answer.scores)
            _say(f"{name}, batch size {size}: {answer.seconds:.2f} s, warming up")
        fastest[name] = min(took, key=lambda size: took[size])
        entry["seconds"].setdefault(name, [])
        entry["versions"][name] = worker.versions
        entry["differences"][name] = _difference(scores[name], scores[BASELINE])
        entry["memory_mb"][name] = round(resident_mb(worker.pid))
    entry["batch_sizes"] = {name: size for name, size in fastest.items() if size is not None}
    return fastest


def one_round(
    workers: Mapping[str, Worker], workload: Workload, batch_sizes: Mapping[str, int | None], entry: dict[str, Any]
) -> None:
    """Call every system once, and note the seconds of all or, if one fails, of none."""
    seconds = {}
    for name, worker in workers.items():
        answer = worker.call(workload.query, workload.passages, workload.max_length, batch_sizes[name])
        seconds[name] = answer.seconds
        _say(f"{name}: {answer.seconds:.2f} s")
        time.sleep(_PAUSE_S)
    for name, took in seconds.items():
        entry["seconds"][name].append(round(took, 4))


def resident_mb(pid: int) -> float:
    """Return the memory of a process, with its mapped weights, as if it were alone."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS:"))


def _difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    differences = np.abs(ours - theirs)
    return {"mean": round(float(differences.mean()), 6), "max": round(float(differences.max()), 6)}


def table(record: Mapping[str, Any]) -> str:
    """Return the times beside rankrt's, and the derived times of the full depth, as Markdown."""
    head = ["model", "system", "a call", "x", "full depth, derived", "memory", "largest difference"]
    return Table(heading=head, rows=[row for entry in record["models"] for row in _rows(entry)]).markdown()


def _rows(entry: Mapping[str, Any]) -> list[list[str]]:
    conditions, rows = entry["conditions"], []
    name, n_full = _FULL[conditions["architecture"]]
    for system, seconds in entry["seconds"].items():
        title = TITLES[system].format(batch_size=entry["batch_sizes"].get(system))
        factor = deepened(conditions, n_full, has_vocabulary=system == "llm-flagembedding")
        baseline = entry["seconds"][BASELINE]
        derived = ratio(seconds, baseline) * factor / deepened(conditions, n_full, has_vocabulary=False)
        rows.append(
            [
                f"{name}, {conditions['n_layers']} of {n_full} layers",
                title,
                f"{figure(float(np.median(seconds)))} s",
                f"{ratio(seconds, baseline):.2f}",
                f"{figure(float(np.median(seconds)) * factor)} s, {derived:.2f} x",
                f"{entry['memory_mb'][system] / 1e3:.1f} GB",
                figure(entry["differences"][system]["max"], 2),
            ]
        )
    return rows


def deepened(conditions: Mapping[str, Any], n_full: int, *, has_vocabulary: bool) -> float:
    """Return the factor of a token's weights from this depth to the whole model. A vocabulary's matrix counts once."""
    vocabulary = conditions["n_weights_of_vocabulary"] if has_vocabulary else 0
    layer = conditions["n_weights_of_layer"]
    return float((vocabulary + n_full * layer) / (vocabulary + conditions["n_layers"] * layer))


def _export(checkpoint: Path, precisions: Sequence[Precision]) -> Path:
    artifact = checkpoint.with_name(f"{checkpoint.name}.artifact")
    if not artifact.exists():
        _say(f"exporting {checkpoint.name}")
        # Random weights drift more than any limit allows, and the drift itself is the question.
        limits: dict[str, Any] = {"is_verified": False, "max_difference": np.inf, "min_tau": -1.0}
        export(str(checkpoint), artifact, Options(precisions=precisions, prompt="flagembedding", **limits))
    return artifact


def _systems(wanted: Sequence[str], artifact: Path) -> list[str]:
    """Return the systems, the baseline first, without those whose variant the artifact lacks."""
    has = {variant.precision for variant in open_artifact(artifact).manifest.variants}
    absent = {f"{BASELINE}-{precision}" for precision in ("w8", "int8", "int4") if precision not in has}
    return [BASELINE, *(name for name in wanted if name != BASELINE and name not in absent)]


def _worker(name: str, checkpoint: Path, artifact: Path, stack: ExitStack) -> Worker:
    log = cache_folder() / "logs" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    model, entry = artifact if name.startswith(BASELINE) else checkpoint, entry_of(name)
    n_threads = this_machine().cores.n
    budget = Budget(n_threads=n_threads, cpus=pinned_cpus(n_threads), load_s=_CALL_LIMIT_S, call_s=_CALL_LIMIT_S)
    _say(f"loading {name}")
    return stack.enter_context(Worker(name, str(model.absolute()), budget, log, str(python_of(entry.environment))))


def _conditions(checkpoint: Path, artifact: Path, workload: Workload, systems: Sequence[str]) -> dict[str, Any]:
    """Return the conditions that all rounds of a record share."""
    opened, machine = open_checkpoint(str(checkpoint), Hub()), this_machine()
    weights, config = opened.weights, opened.config
    layer = [name for name in weights.names if name.startswith("model.layers.0.")]
    heads = 0 if opened.architecture == LAYERWISE else config["vocab_size"] * config["hidden_size"]
    return {
        "model": checkpoint.name,
        "architecture": opened.architecture,
        "n_layers": config["num_hidden_layers"],
        "n_weights_of_layer": sum(int(np.prod(weights.shape(name))) for name in layer),
        "n_weights_of_vocabulary": heads,
        "weights": sha256_of_files(checkpoint),
        "artifact": open_artifact(artifact).identity,
        "machine": {"processor": machine.processor, "instructions": machine.instructions, "n_threads": machine.cores.n},
        "workload": {**workload.size, "kind": workload.name},
        "systems": list(systems),
    }


def _entry(record: dict[str, Any], conditions: dict[str, Any]) -> dict[str, Any]:
    """Return the record's entry of these conditions. It replaces one of the same model under other conditions."""
    conditions = json.loads(json.dumps(conditions))
    others = [entry for entry in record["models"] if entry["conditions"]["model"] != conditions["model"]]
    same = [entry for entry in record["models"] if entry["conditions"] == conditions]
    entry = same[0] if same else {"conditions": conditions, "versions": {}, "differences": {}}
    entry = {"batch_sizes": {}, "memory_mb": {}, "seconds": {}, **entry}
    record["models"] = [*others, entry]
    return entry


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"benchmark": "llm_speed", "models": []}
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def _write(record: dict[str, Any], path: Path) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="folders with checkpoints of LLM rerankers")
    parser.add_argument(
        "--text", type=Path, help="see `benchmarks.harness.workloads.read`; the sample if it is not given"
    )
    parser.add_argument("--systems", nargs="+", choices=DECODERS, default=list(DECODERS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "w8", "int4"], metavar="P")
    parser.add_argument("--passages", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
