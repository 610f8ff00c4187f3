"""An evaluation for people and programs: a table, Markdown, JSON, TREC runs, and a page with pictures."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rankrt_finetune.evaluation.comparison import CONFIDENCE, Difference
from rankrt_finetune.evaluation.evaluation import Evaluation, Row, ids
from rankrt_finetune.evaluation.records import run_lines
from rankrt_finetune.reports.tables import Table, figure

_PAGE = Path(__file__).with_name("report.html.jinja")
_NOTHING = "-"


def table(found: Evaluation) -> Table:
    """Return a row for each system: its means, the difference of the first measure, its speed and likeness.

    Columns in which no row has a value are left out.
    """
    main = found.measures.names[0]
    columns: dict[str, list[str]] = {"system": [row.name for row in found.rows]}
    columns |= {name: [f"{row.means[i]:.4f}" for row in found.rows] for i, name in enumerate(found.measures.names)}
    columns[f"difference in {main}"] = [_difference(row) for row in found.rows]
    columns["p"] = [_p_value(row) for row in found.rows]
    columns["pairs/s"] = [figure(row.pairs_per_s) for row in found.rows]
    columns["truncated"] = [_truncated(row) for row in found.rows]
    columns["max drift"] = [figure(None if row.likeness is None else row.likeness.max_drift, 2) for row in found.rows]
    columns["tau"] = [_NOTHING if row.likeness is None else f"{row.likeness.tau:.4f}" for row in found.rows]
    shown = {name: cells for name, cells in columns.items() if any(cell != _NOTHING for cell in cells)}
    return Table(heading=list(shown), rows=list(map(list, zip(*shown.values(), strict=True))))


def remarks(found: Evaluation) -> Iterator[str]:
    """Yield sentences that a reader of the table needs."""
    data = found.dataset
    yield (
        f"{data.name}: {len(data.queries):,} queries, {data.n_pairs:,} pairs. The candidates are those of"
        f" {data.first_stage}; they hold {data.share_found:.1%} of the relevant documents."
    )
    yield from data.notes
    compared = [row for row in found.rows if row.differences is not None]
    if compared and found.can_be_tested:
        yield (
            f"Differences are from {found.baseline.name}, with {CONFIDENCE:.0%} intervals of a paired bootstrap over"
            " the queries; p is a randomisation test's."
        )
    elif compared:
        yield "There is one query only, so no interval and no test is possible."
    for first in dict.fromkeys(row.compared_to for row in found.rows if row.compared_to is not None):
        names = [row.name for row in found.rows if row.compared_to == first]
        yield f"Drift and tau from {first}: {'; '.join(names)}."
    if any(np.isnan(ranked.scores).any() for row in found.rows for ranked in row.rankings.values()):
        yield (
            "Refined and progressive rows rank their best N, as a caller gets them; the other candidates follow in the"
            f" order of {data.first_stage}."
        )


def text(found: Evaluation) -> str:
    """Return the table and its remarks for a terminal."""
    return table(found).text() + "\n" + "".join(f"{line}\n" for line in remarks(found))


def markdown(found: Evaluation) -> str:
    """Return the table and its remarks in GitHub's Markdown."""
    return table(found).markdown() + "\n" + " ".join(remarks(found)) + "\n"


def record(found: Evaluation) -> dict[str, Any]:
    """Return everything but the rankings, for programs."""
    data, names = found.dataset, found.measures.names
    return {
        "data": {
            "name": data.name,
            "digest": data.digest,
            "n_queries": len(data.queries),
            "n_pairs": data.n_pairs,
            "first_stage": data.first_stage,
            "share_found": data.share_found,
            "notes": list(data.notes),
        },
        "measures": names,
        "confidence": CONFIDENCE,
        "programs": {name: version(name) for name in ("rankrt", "ir-measures", "bm25s", "scipy")},
        "rows": [_row(row, names) for row in found.rows],
    }


def per_query(found: Evaluation) -> Iterator[str]:
    """Yield a line of JSON for each query: its text, and the measures of each row."""
    for i, (query, words) in enumerate(found.dataset.queries.items()):
        values = {row.name: dict(zip(found.measures.names, row.values[i].tolist(), strict=True)) for row in found.rows}
        n = len(found.dataset.candidates[query].ids)
        yield json.dumps({"id": query, "query": words, "n_candidates": n, "rows": values}, ensure_ascii=False)


def runs(found: Evaluation) -> Iterator[tuple[str, Iterator[str]]]:
    """Yield the name of a file and the lines of a TREC run for each row."""
    for row in found.rows:
        tag = re.sub(r"[^\w.-]+", "-", row.name).strip("-")
        yield f"{tag}.trec", _run(found, row, tag)


def _run(found: Evaluation, row: Row, tag: str) -> Iterator[str]:
    for query, ranked in row.rankings.items():
        yield from run_lines(query, ids(found.dataset, query, ranked), ranked.scores[ranked.order].tolist(), tag)


def page(found: Evaluation) -> str:
    """Return one self-contained HTML page, the pictures first. It needs matplotlib and jinja2."""
    from markupsafe import Markup

    from rankrt_finetune.evaluation.pictures import PICTURES
    from rankrt_finetune.reports.pages import page as report_page

    drawn = {title: draw(found) for title, draw in PICTURES.items()}
    return report_page(
        _PAGE,
        title=f"Evaluation on {found.dataset.name}",
        remarks=list(remarks(found)),
        pictures={title: Markup(svg) for title, svg in drawn.items() if svg is not None},
        table=Markup(table(found).html()),
        differences={
            name: Markup(_all_differences(found, i).html())
            for i, name in enumerate(found.measures.names)
            if len(found.rows) > 1
        },
        extremes=[
            (row.name, Markup(_extremes(found, row).html())) for row in found.rows[1:] if _extremes(found, row).rows
        ],
    )


def _all_differences(evaluation: Evaluation, measure: int) -> Table:
    rows = [(row.name, row.differences[measure]) for row in evaluation.rows if row.differences is not None]
    return Table(
        heading=["system", "difference", "low", "high", "p", "better", "worse"],
        rows=[
            [
                name,
                *map(_signed, (found.mean, found.low, found.high)),
                figure(found.p, 2),
                str(found.n_better),
                str(found.n_worse),
            ]
            for name, found in rows
        ],
    )


def _extremes(found: Evaluation, row: Row, n: int = 5) -> Table:
    """Return the queries that differ most from the first row, by the first measure."""
    queries = list(found.dataset.queries)
    deltas = row.values[:, 0] - found.baseline.values[:, 0]
    order = [int(i) for i in np.argsort(-np.abs(deltas), kind="stable") if deltas[i]][:n]
    return Table(
        heading=["query", "id", found.baseline.name, row.name],
        rows=[
            [
                f"{found.dataset.queries[queries[i]]:.100}",
                queries[i],
                f"{found.baseline.values[i, 0]:.4f}",
                f"{row.values[i, 0]:.4f}",
            ]
            for i in order
        ],
    )


def _row(row: Row, names: Sequence[str]) -> Mapping[str, Any]:
    return {
        "name": row.name,
        "is_first_stage": row.is_first_stage,
        "means": dict(zip(names, row.means, strict=True)),
        "intervals": dict(zip(names, row.intervals, strict=True)),
        "differences": row.differences and dict(zip(names, map(_as_json, row.differences), strict=True)),
        "n_pairs": row.n_pairs,
        "n_truncated": row.n_truncated,
        "seconds": row.seconds,
        "pairs_per_s": row.pairs_per_s,
        "compared_to": row.compared_to,
        "likeness": row.likeness and _as_json(row.likeness),
    }


def _as_json(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _difference(row: Row) -> str:
    if row.differences is None:
        return _NOTHING
    first: Difference = row.differences[0]
    if first.low is None:
        return _signed(first.mean)
    return f"{_signed(first.mean)} [{_signed(first.low)}, {_signed(first.high)}]"


def _p_value(row: Row) -> str:
    p = row.differences[0].p if row.differences else None
    return _NOTHING if p is None else f"{p:.3f}" if p >= 0.001 else "<0.001"


def _signed(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:+.4f}"


def _truncated(row: Row) -> str:
    return _NOTHING if row.n_truncated is None else f"{row.n_truncated / max(1, row.n_pairs):.1%}"
