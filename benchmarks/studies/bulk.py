"""The gain and the memory of several processes in bulk: `rankrt score --processes N` on one file of real pairs.

    python -m benchmarks.studies.bulk --artifact ./tiny ./minilm --data ../shared/data -o record.json

Each number of processes takes its turn in each round. The clock runs from the command's start to its end, loading
included, so a second run with a tenth of the pairs is subtracted. Memory is the largest sum of the processes' Pss, in
which a page that is shared counts for each process by its share. The outputs have to be the same bytes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.processes import children_of, memory_mb
from benchmarks.studies.resident import real_pairs
from rankrt.host.cpu import this_machine
from rankrt_finetune.reports.tables import Table

_SAMPLED_EVERY_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder above xquad/")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--pairs", type=int, nargs="+", default=[20000], help="of each artifact")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="the file of the record")
    options = parser.parse_args()
    record = {
        "benchmark": "bulk",
        "machine": {"processor": this_machine().processor, "load_before": round(os.getloadavg()[0], 2)},
        "precision": options.precision,
        "found": [
            measure(artifact, n_pairs, options)
            for artifact, n_pairs in zip(options.artifact, options.pairs, strict=True)
        ],
    }
    print(table(record["found"]).markdown())
    if options.output:
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measure(artifact: Path, n_pairs: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the pairs a second and the memory of each number of processes, by the median of the rounds."""
    pairs = real_pairs(options.data, n_pairs)
    seconds: dict[int, list[float]] = {n: [] for n in options.processes}
    memory: dict[int, list[float]] = {n: [] for n in options.processes}
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few.jsonl", Path(folder) / "many.jsonl"
        for file, n in ((few, n_pairs // 10), (many, n_pairs)):
            lines = (json.dumps({"query": query, "passage": passage}) for query, passage in pairs[:n])
            file.write_text("\n".join(lines), encoding="utf-8")
        outputs = set()
        for _ in range(options.rounds):
            for n in options.processes:
                short_s, _, _ = score(artifact, few, n, options.precision)
                long_s, peak_mb, output = score(artifact, many, n, options.precision)
                seconds[n].append(long_s - short_s)
                memory[n].append(peak_mb)
                outputs.add(output)
    if len(outputs) != 1:
        raise SystemExit("the outputs differ between runs")
    n_timed = n_pairs - n_pairs // 10
    return {
        "artifact": artifact.name,
        "n_pairs": n_pairs,
        "of_processes": [
            {
                "n_processes": n,
                "pairs_per_second": round(n_timed / statistics.median(seconds[n]), 1),
                "rounds_s": [round(value, 3) for value in seconds[n]],
                "memory_mb": round(statistics.median(memory[n]), 1),
            }
            for n in options.processes
        ],
    }


def score(artifact: Path, file: Path, n_processes: int, precision: str) -> tuple[float, float, bytes]:
    """Run the command; return its seconds, its processes' largest memory in MB, and the output."""
    out = file.with_suffix(f".{n_processes}.csv")
    command = [sys.executable, "-m", "rankrt", "score", str(artifact), str(file), "--out", str(out)]
    started_s, peak_mb = time.perf_counter(), 0.0
    process = subprocess.Popen(
        [*command, "--processes", str(n_processes), "--precision", precision], stderr=subprocess.PIPE
    )
    while process.poll() is None:
        peak_mb = max(peak_mb, pss_mb(process.pid))
        time.sleep(_SAMPLED_EVERY_S)
    seconds = time.perf_counter() - started_s
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(said.decode())
    output = out.read_bytes()
    out.unlink()
    return seconds, peak_mb, output


def pss_mb(pid: int) -> float:
    """Return the memory of a process and its descendants, without those that have ended meanwhile."""
    try:
        return memory_mb(pid)["pss"] + sum(map(pss_mb, children_of(pid)))
    except (FileNotFoundError, ProcessLookupError, KeyError):  # an ended process has no figures
        return 0.0


def table(found: list[dict[str, Any]]) -> Table:
    rows = [
        [one["artifact"], str(each["n_processes"]), f"{each['pairs_per_second']:.0f}", f"{each['memory_mb']:.0f} MB"]
        for one in found
        for each in one["of_processes"]
    ]
    return Table(heading=["model", "processes", "pairs a second", "memory"], rows=rows)


if __name__ == "__main__":
    main()
