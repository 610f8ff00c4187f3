"""The generated parts of README.md and docs/: what commands print, what measurements say.

python -m benchmarks.docs          write them again
python -m benchmarks.docs --check  fail if that would change anything
"""

import argparse
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.record import read_record, schema
from benchmarks.report import markdown
from benchmarks.tables import Table
from rankrt.cli import main as rankrt
from tiny_reranker.evaluation import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCHEMA = ROOT / "benchmarks" / "record.schema.json"
TINY = ROOT / "tiny_reranker"
SHOWN = {
    "rankrt": "rankrt 0.1.0",
    "pytorch-sdpa": "PyTorch 2.13.0, one exact-length row at a time",
    "sentence-transformers": "sentence-transformers 6.2.0, as shipped",
}
INT8 = {
    "rankrt-int8": "rankrt, int8",
    "rankrt": "rankrt, fp32",
    "onnxruntime-dynamic": "ONNX Runtime, `quantize_dynamic`, row by row",
    "pytorch-dynamic": "PyTorch, `quantize_dynamic`, row by row",
    "sentence-transformers": "sentence-transformers, fp32",
}
COMMANDS = ("", "export", "serve", "rerank", "score", "info", "doctor", "cache")


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
    return {**written, **reports, ROOT / "docs" / "cli.md": cli(), SCHEMA: schema()}


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
    parts = ["# The command line", "", "Generated from the commands themselves: `make docs`.", ""]
    for command in COMMANDS:
        parts += [f"## rankrt {command}".rstrip(), "", "```", _help_of(command).rstrip(), "```", ""]
    return "\n".join(parts)


def speed() -> str:
    """Return the measured rows as a table."""
    record = _result("cpu_speed")
    speeds, names = record["speeds"], SHOWN
    table = Table(
        heading=["one query", *map(_described, speeds)],
        rows=[
            [title, *(f"{s['median_seconds'][name]:.1f} s, {s['times_rankrt'][name]:.2f} x" for s in speeds)]
            for name, title in names.items()
        ],
    )
    return f"{table.markdown()}\n{_conditions(record)}\n"


def _conditions(record: Mapping[str, Any]) -> str:
    machine, found = record["machine"], _result("sgemm_share")["shares"]
    shares = " and ".join(f"{share['of_sgemm_from_memory']:.0%} with {share['n_tokens']} tokens" for share in found)
    alone = " and ".join(f"{share['of_sgemm_alone']:.0%}" for share in found)
    return (
        f"bge-reranker-v2-m3's shape (568 M parameters, 24 layers), fp32, {machine['n_threads']} cores of an"
        f" {machine['processor']} ({machine['instructions'][-1]}); medians of {record['speeds'][0]['n_rounds']} rounds,"
        " systems in turn, tokenization included; x: time relative to rankrt's. One row alone reaches"
        f" {shares} of the rate of a model's plain matrix products, the best of MLAS, MKL and OpenBLAS in the same run,"
        f" and {alone} of what these reach on weights that never leave the caches."
        " [How it is measured](docs/benchmarks.md); [records](benchmarks/results)."
    )


def int8_speed() -> str:
    """Return int8 beside fp32 and beside the int8 of other engines, as a table."""
    record, machine = _result("int8_speed"), _result("int8_speed")["machine"]
    seconds, times, drift = (
        record[name] for name in ("median_seconds", "times_rankrt_int8", "max_difference_from_fp32")
    )
    table = Table(
        heading=[f"one query, {record['workload']} passages", "", "largest difference from fp32"],
        rows=[
            [title, f"{seconds[name]:.1f} s, {times[name]:.2f} x", f"{drift[name]:.2g}"] for name, title in INT8.items()
        ],
    )
    return (
        f"{table.markdown()}\nThe same shape (random weights, which drift more than trained ones),"
        f" {record['int8_share']:.0%} of the multiply-adds in int8, {machine['n_threads']} cores of an"
        f" {machine['processor']} ({machine['instructions'][-1]}); medians of {record['n_rounds']} rounds, in turn.\n"
    )


def memory() -> str:
    """Return what a model of 568 M parameters takes."""
    rows = [[row["what"], row["value"]] for row in _result("memory")["rows"]]
    return Table(heading=["bge-reranker-v2-m3's shape, fp32", ""], rows=rows).markdown()


def int8_drift() -> str:
    """Return what int8 costs in scores, as a table."""
    records = map(_result, ("int8_drift", "int8_drift_6x384", "int8_drift_outliers"))
    return Table(
        heading=["model", "int8 by", "of multiply-adds", "drift, mean", "largest", "tau", "nDCG@10 (fp32)"],
        rows=[_drift(row) for record in records for row in record["rows"]],
    ).markdown()


def _drift(row: Mapping[str, Any]) -> list[str]:
    ndcg = f"{row['ndcg']:.3f} ({row['ndcg_fp32']:.3f})" if row["ndcg_fp32"] > 0.5 else "untrained"
    drift = [f"{row['mean_drift']:.3f}", f"{row['max_drift']:.2f}", f"{row['tau']:.3f}"]
    return [row["model"], row["method"], f"{row['int8_share']:.0%}", *drift, ndcg]


def quality() -> str:
    """Return how the tiny reranker ranks, as a table."""
    return table(json.loads((TINY / "evaluation.json").read_text())["quality"])


PARTS: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "README.md": {"speed": speed, "memory": memory, "int8 speed": int8_speed, "int8 drift": int8_drift},
    TINY / "README.md": {"quality": quality},
}


def _described(speed: Mapping[str, Any]) -> str:
    return f"{speed['workload']} (mean {speed['mean_tokens']:.0f}, longest {speed['max_tokens']} tokens)"


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
