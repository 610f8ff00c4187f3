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

from rankrt.cli import main as rankrt
from tiny_reranker.evaluation import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TINY = ROOT / "tiny_reranker"
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
    return {**written, ROOT / "docs" / "cli.md": cli()}


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
    names = {
        "rankrt": "rankrt {}",
        "pytorch-sdpa": "PyTorch {}, one exact-length row at a time",
        "sentence-transformers": "sentence-transformers {}, as shipped",
    }
    speeds = record["speeds"]
    lines = [
        "| one query | " + " | ".join(_described(speed) for speed in speeds) + " |",
        "|---" * (len(speeds) + 1) + "|",
    ]
    for name, title in names.items():
        versions = record["versions"][name]
        version = versions.get(name) or versions.get("torch", "")
        cells = [f"{s['median_seconds'][name]:.1f} s, {s['times_rankrt'][name]:.2f} x" for s in speeds]
        lines.append(f"| {title.format(version.split('+')[0])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\n{_conditions(record)}\n"


def _conditions(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    found = _result("sgemm_share")["shares"]
    shares = " and ".join(f"{share['of_sgemm_from_memory']:.0%} with {share['n_tokens']} tokens" for share in found)
    alone = " and ".join(f"{share['of_sgemm_alone']:.0%}" for share in found)
    return (
        f"bge-reranker-v2-m3's shape (568 M parameters, 24 layers), fp32, {machine['n_threads']} cores of an"
        f" {machine['processor']} ({machine['instructions'][-1]}); medians of {record['speeds'][0]['n_rounds']} rounds,"
        " systems in turn, tokenization included; x: time relative to rankrt's. One row alone reaches"
        f" {shares} of the rate of a model's plain matrix products, the best of MLAS, MKL and OpenBLAS in the same run,"
        f" and {alone} of what these reach on weights that never leave the caches. Scripts:"
        " [speed](benchmarks/cpu_speed.py), [share](benchmarks/sgemm_share.py); [records](benchmarks/results)."
    )


def memory() -> str:
    """Return what a model of 568 M parameters takes."""
    record = _result("memory")
    rows = "\n".join(f"| {row['what']} | {row['value']} |" for row in record["rows"])
    return f"| bge-reranker-v2-m3's shape, fp32 | |\n|---|---|\n{rows}\n"


def int8_speed() -> str:
    """Return int8 beside fp32 and beside the int8 of other engines, as a table."""
    record = _result("int8_speed")
    names = {
        "rankrt-int8": "rankrt, int8",
        "rankrt": "rankrt, fp32",
        "onnxruntime-dynamic": "ONNX Runtime, `quantize_dynamic`, row by row",
        "pytorch-dynamic": "PyTorch, `quantize_dynamic`, row by row",
        "openvino-int8": "OpenVINO, NNCF, row by row",
        "sentence-transformers": "sentence-transformers, fp32",
    }
    lines = [f"| one query, {record['workload']} passages | | largest difference from fp32 |", "|---|---|---|"]
    for name, title in names.items():
        if name in record["median_seconds"]:
            seconds, times = record["median_seconds"][name], record["times_rankrt_int8"][name]
            drift = record["max_difference_from_fp32"][name]
            lines.append(f"| {title} | {seconds:.1f} s, {times:.2f} x | {drift:.2g} |")
    machine = record["machine"]
    return "\n".join(lines) + (
        f"\n\nThe same shape (random weights, which drift more than trained ones), {record['int8_share']:.0%} of the"
        f" multiply-adds in int8, {machine['n_threads']} cores of an {machine['processor']}"
        f" ({machine['instructions'][-1]}); medians of {record['n_rounds']} rounds, in turn.\n"
    )


def int8_drift() -> str:
    """Return what int8 costs in scores, as a table."""
    head = "| model | int8 by | of multiply-adds | drift, mean | largest | tau | nDCG@10 (fp32) |"
    lines = [head, "|---" * 7 + "|"]
    for record in map(_result, ("int8_drift", "int8_drift_6x384", "int8_drift_outliers")):
        for row in record["rows"]:
            is_trained = row["ndcg_fp32"] > 0.5
            ndcg = f"{row['ndcg']:.3f} ({row['ndcg_fp32']:.3f})" if is_trained else "untrained"
            lines.append(
                f"| {row['model']} | {row['method']} | {row['int8_share']:.0%} | {row['mean_drift']:.3f} |"
                f" {row['max_drift']:.2f} | {row['tau']:.3f} | {ndcg} |"
            )
    return "\n".join(lines) + "\n"


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
