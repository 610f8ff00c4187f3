"""Turn records into a report: Markdown for a pull request, and one self-contained HTML page.

python -m benchmarks.records.report benchmarks/results/*.json -o report/
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from benchmarks.records.plots import PLOTS
from benchmarks.records.record import Record, RecordError, Row, read_record
from rankrt_finetune.reports.pages import page as report_page
from rankrt_finetune.reports.tables import Table, figure

_PAGE = Path(__file__).with_name("report.html.jinja")

# The columns of each suite: heading and content.
Column = Callable[[Row], str]


def _metric(name: str, digits: int = 3) -> Column:
    return lambda row: figure(row.metrics.get(name), digits)


def _size(name: str) -> Column:
    return lambda row: figure(row.size.get(name), 4)


def _given(row: Row) -> str:
    size = row.size.get("batch_size")
    return f"best: sorted, {size:.0f} at once" if size else row.given


COLUMNS: Mapping[str, Mapping[str, Column]] = {
    "latency": {
        "tokens": _size("n_tokens"),
        "p50 ms": _metric("p50_ms"),
        "p95 ms": _metric("p95_ms"),
        "p99 ms": _metric("p99_ms"),
        "spread": _metric("spread", 2),
        "x baseline": _metric("times_baseline"),
        "max drift": _metric("max_drift", 2),
    },
    "throughput": {
        "text": _given,
        "pairs/s": _metric("pairs_per_s"),
        "tokens/s": _metric("tokens_per_s"),
        "tokens/s a core": _metric("tokens_per_s_per_core"),
        "x baseline": _metric("times_baseline"),
        "spread": _metric("spread", 2),
        "max drift": _metric("max_drift", 2),
    },
    "scaling": {"tokens": _size("n_tokens"), "p50 ms": _metric("p50_ms"), "tokens/s": _metric("tokens_per_s")},
    "roofline": {
        "GFLOP/s": _metric("gflops"),
        "of products from memory": _metric("of_sgemm_from_memory", 2),
        "of products alone": _metric("of_sgemm_alone", 2),
    },
    "quality": {
        "nDCG@10": _metric("ndcg_10"),
        "MRR@10": _metric("mrr_10"),
        "tau": _metric("tau"),
        "top 10": _metric("top_10_overlap"),
        "mean drift": _metric("mean_drift", 2),
        "max drift": _metric("max_drift", 2),
    },
    "startup": {
        "first score s": _metric("first_score_s", 2),
        "resident MB": _metric("rss_mb", 4),
        "private MB": _metric("private_mb", 4),
        "shared MB": _metric("shared_mb", 4),
        "together MB": _metric("pss_mb", 4),
    },
    "export": {"s": _metric("seconds"), "peak MB": _metric("peak_mb", 4), "size MB": _metric("size_mb", 4)},
    "load": {
        "offered/s": _size("offered_per_s"),
        "answered/s": _metric("answered_per_s"),
        "p50 ms": _metric("p50_ms"),
        "p95 ms": _metric("p95_ms"),
        "p99 ms": _metric("p99_ms"),
        "failed": _metric("failed", 1),
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+", metavar="RECORD")
    parser.add_argument("-o", "--output", type=Path, default=Path("report"), metavar="FOLDER", help="(%(default)s/)")
    options = parser.parse_args(arguments)
    try:
        records = [read_record(path) for path in options.records]
    except RecordError as error:
        print(f"benchmarks.records.report: {error}", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "report.md").write_text(markdown(records), encoding="utf-8")
    (options.output / "index.html").write_text(page(records), encoding="utf-8")
    print(f"{options.output / 'report.md'}\n{options.output / 'index.html'}")
    return 0


def markdown(records: Sequence[Record]) -> str:
    """Return all records as Markdown."""
    return "\n".join(_sections(record) for record in records)


def page(records: Sequence[Record]) -> str:
    """Return all records as one HTML page, the pictures first."""
    return report_page(
        _PAGE,
        records=records,
        conditions=conditions,
        tables=lambda record: {name: Markup(table.html()) for name, table in tables(record).items()},
        plots=lambda record: {name: Markup(svg) for name, draw in PLOTS.items() if (svg := draw(record))},
        missing=lambda record: Markup(missing(record).html()),
        has_missing=lambda record: bool(missing(record).rows),
    )


def tables(record: Record) -> dict[str, Table]:
    """Return a table for each suite and case, with a row for each system. `missing` has those without values."""
    found = {}
    for suite in COLUMNS:
        rows = [row for row in record.of(suite) if row.reason is None]
        for case in dict.fromkeys(_table_of(row) for row in rows):
            found[f"{suite}: {case}" if case else suite] = _table(
                suite, [row for row in rows if _table_of(row) == case]
            )
    return found


def _table_of(row: Row) -> str:
    """Return the subject of a table besides its suite. Startup, export and quality have one for all their cases."""
    return row.case if row.suite in {"latency", "throughput", "roofline"} else ""


def _table(suite: str, rows: Sequence[Row]) -> Table:
    columns = {
        name: column for name, column in COLUMNS[suite].items() if any(column(row) != figure(None) for row in rows)
    }
    cases = {row.case for row in rows}
    heads = ["system"] + ["case"] * (len(cases) > 1)
    return Table(
        heading=[*heads, *columns],
        rows=[[row.system, row.case][: len(heads)] + [column(row) for column in columns.values()] for row in rows],
    )


def missing(record: Record) -> Table:
    """Return the missing measurements with their reasons. Cases of one suite with the same reason share a row."""
    rows = sorted((row for row in record.rows if row.reason), key=lambda row: (row.system, row.reason or "", row.suite))
    grouped = groupby(rows, key=lambda row: (row.system, row.reason or ""))
    return Table(
        heading=["system", "what", "why not"],
        rows=[[system, _cases(list(of_reason)), reason] for (system, reason), of_reason in grouped],
    )


def _cases(rows: Sequence[Row]) -> str:
    suites = dict.fromkeys(row.suite for row in rows)
    return "; ".join(f"{s}: {', '.join(dict.fromkeys(r.case for r in rows if r.suite == s))}" for s in suites)


def conditions(record: Record) -> str:
    """Return a sentence about the machine."""
    machine, model = record.machine, record.model
    gpu = machine.accelerator
    parts = [
        *([f"{gpu.device}: {gpu.name}, {gpu.memory_gb:.0f} GB, driver {gpu.driver}"] if gpu else []),
        f"{model.name}: {model.architecture}, {model.n_parameters / 1e6:.4g} M parameters",
        f"{machine.n_threads} threads on CPUs {', '.join(map(str, machine.cpus))} of an {machine.processor}"
        f" ({machine.instructions[-1]}), {machine.memory_gb:.0f} GB, {machine.system}, Python {machine.python}",
        f"text: {record.text.name}",
        f"baseline, in turn with each system: {record.baseline}",
        f"rankrt at {record.commit}",
        record.made + (", interrupted" if not record.is_complete else ""),
    ]
    return "; ".join(parts) + "."


def _sections(record: Record) -> str:
    parts = [f"# {record.model.name}\n", conditions(record) + "\n"]
    for name, table in tables(record).items():
        parts += [f"## {name}\n", table.markdown()]
    if missing(record).rows:
        parts += ["## Not measured\n", missing(record).markdown()]
    return "\n".join([*parts, "## Versions\n", versions(record).markdown()])


def versions(record: Record) -> Table:
    """Return the versions of each system's parts."""
    rows = [
        [name, ", ".join(f"{part} {version}" for part, version in system.versions.items())]
        for name, system in record.systems.items()
    ]
    return Table(heading=["system", "versions"], rows=rows)


if __name__ == "__main__":
    sys.exit(main())
