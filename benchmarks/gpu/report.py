"""A session's record as Markdown: speed beside PyTorch and beside the card's own products, then each stage's lines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu.lines import PRODUCTS, RANKRT
from rankrt_finetune.reports.tables import Table, figure


def report(record: Mapping[str, Any]) -> str:
    """Return the report of what has been measured so far."""
    parts = ["# One GPU", "\n".join(f"- {name}: {value}" for name, value in record["conditions"].items())]
    if beside := speeds(record):
        parts += ["## Speed", ceiling_said(record), beside]
    if table := latencies(record):
        parts += ["Milliseconds of a request of so many rows x tokens:", table]
    parts += ["## Stages", _outcomes(record["stages"])]
    for name, stage in record["stages"].items():
        if stage["lines"]:
            parts += [f"### {name}", *_tables(stage["lines"])]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def ceiling_tflops(record: Mapping[str, Any]) -> float | None:
    """Return the best rate of the products of the model's layers, alone; None if it was not measured."""
    lines = record["stages"].get("machine", {}).get("lines", [])
    rates = [line["figures"]["tflops"] for line in lines if line["name"].startswith(PRODUCTS)]
    return max(rates, default=None)


def ceiling_said(record: Mapping[str, Any]) -> str:
    """Return a sentence on what the shares are of."""
    ceiling = ceiling_tflops(record)
    if ceiling is None:
        return "The rate of the model's products alone was not measured."
    return (
        f"The products of the model's layers, repeated alone, reach {figure(ceiling)} TFLOP/s. Shares are of that rate."
        " They count the operations that a score needs; padding is not one of them. x is rankrt's speed by a system's."
    )


def speeds(record: Mapping[str, Any]) -> str:
    """Return the table of speeds, by rows and system; "" if there are none."""
    ceiling, lines = ceiling_tflops(record), _lines(record, "tokens_per_s")
    ours = {line["figures"]["rows"]: line["figures"]["tokens_per_s"] for line in lines if line["name"] == RANKRT}
    order = list(dict.fromkeys(line["figures"]["rows"] for line in lines))
    rows = [
        [
            f"{figures['rows']}: {line['name']}",
            figure(figures["tokens_per_s"] / 1e3),
            figure(figures["rows_per_s"]),
            figure(figures["tflops"]),
            "-" if ceiling is None else f"{figures['tflops'] / ceiling:.0%}",
            f"{ours[figures['rows']] / figures['tokens_per_s']:.2f}" if figures["rows"] in ours else "-",
        ]
        for line in sorted(lines, key=lambda line: order.index(line["figures"]["rows"]))
        for figures in [line["figures"]]
    ]
    heading = ["rows: system", "thousand tokens/s", "rows/s", "TFLOP/s", "share", "x"]
    return Table(heading=heading, rows=rows).markdown() if rows else ""


def latencies(record: Mapping[str, Any], shown: Mapping[str, str] | None = None) -> str:
    """Return the table of requests, by system; "" if there are none. With `shown` those systems, by these names."""
    lines = _lines(record, "request")
    requests = list(dict.fromkeys(line["figures"]["request"] for line in lines))
    took = {(line["name"], line["figures"]["request"]): figure(line["figures"]["ms"]) for line in lines}
    systems = shown or {line["name"]: line["name"] for line in lines}
    rows = [[name, *(took.get((system, request), "-") for request in requests)] for system, name in systems.items()]
    return Table(heading=["", *requests], rows=rows).markdown() if rows else ""


def _lines(record: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return the lines on rankrt and its peers that have a figure of that name."""
    stages = (record["stages"].get(stage, {}) for stage in ("speed", "peers", "compiled"))
    return [line for stage in stages for line in stage.get("lines", []) if name in line["figures"]]


def _outcomes(stages: Mapping[str, Any]) -> str:
    rows = [[name, stage["outcome"], f"{stage['seconds']:.0f} s", stage["reason"]] for name, stage in stages.items()]
    return Table(
        heading=["stage", "outcome", "took", "reason"], rows=[[_cell(c) for c in row] for row in rows]
    ).markdown()


def _tables(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table for all lines with the same figures, in the order of their first lines."""
    kinds = dict.fromkeys(tuple(line["figures"]) for line in lines)
    for names in kinds:
        rows = [
            [_cell(line["name"]), *(_cell(value) for value in line["figures"].values())]
            for line in lines
            if tuple(line["figures"]) == names
        ]
        yield Table(heading=["", *names], rows=rows).markdown()


def _cell(value: float | str) -> str:
    return " ".join(value.split()) if isinstance(value, str) else figure(value, 4)
