"""The report's pictures: speed, latency, memory, and how close each system comes to the machine's own limits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator

from benchmarks.records.record import Record, Row
from benchmarks.systems import SYSTEMS
from rankrt_finetune.reports.pictures import COLORS, HEIGHT, INK, mark, picture


def latency_over_load(record: Record) -> str | None:
    """Draw the median and p95 of a request over the load that is offered."""

    def draw(axes: Axes) -> None:
        for style, (system, rows) in _systems(_measured(record, "load")):
            offered = [row.size["offered_per_s"] for row in rows]
            axes.plot(offered, _values(rows, "p50_ms"), label=system, **style)
            tail = [(x, row.metrics["p95_ms"]) for x, row in zip(offered, rows, strict=True) if row.metrics["p95_ms"]]
            axes.plot(*zip(*tail, strict=True), ls=":", c=style["c"]) if tail else None
        _labels(axes, "requests offered a second", "latency, ms (dotted: p95)")

    return picture(draw) if _measured(record, "load") else None


def throughput_over_length(record: Record) -> str | None:
    """Draw the tokens a second over the length of one row."""
    rows = [row for row in _measured(record, "scaling") if row.case.startswith("length")]

    def draw(axes: Axes) -> None:
        for style, (system, of_system) in _systems(rows):
            lengths = [row.size["longest"] for row in of_system]
            axes.plot(lengths, _values(of_system, "tokens_per_s"), label=system, **style)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _labels(axes, "tokens of a row", "tokens a second")

    return picture(draw, height=HEIGHT + 0.14 * _n_systems(rows)) if rows else None


def speed_against_quality(record: Record) -> str | None:
    """Draw each system's best throughput over its mean drift from PyTorch, and join the Pareto front."""
    best: dict[str, Row] = {}
    for row in _measured(record, "throughput"):
        speed = row.metrics["pairs_per_s"] or 0.0
        if row.metrics.get("mean_drift") is not None and speed > (_speed(best.get(row.system)) or 0.0):
            best[row.system] = row
    # The reference drifts by 0, which a logarithm cannot show.
    points = {system: (max(1e-7, row.metrics["mean_drift"] or 0.0), _speed(row)) for system, row in best.items()}

    def draw(axes: Axes) -> None:
        front = pareto(points)
        axes.plot(*zip(*(points[system] for system in front), strict=True), c="#999999", lw=1, zorder=1)
        for system, point in points.items():
            axes.plot(*point, ls="", label=system, **_mark(system), zorder=2)
        axes.set_xscale("log")
        _labels(axes, "mean drift of a logit from PyTorch fp32 (left is better)", "pairs a second")

    return picture(draw, height=HEIGHT + 0.14 * len(points)) if points else None


def memory(record: Record) -> str | None:
    """Draw the memory of processes together, with shared pages counted once."""
    rows = [row for row in _measured(record, "startup") if row.case.endswith("processes")]
    systems = list(dict.fromkeys(row.system for row in rows))
    counts = sorted({int(row.size["n_processes"]) for row in rows}, reverse=True)

    def draw(axes: Axes) -> None:
        for i, n in enumerate(counts):
            found = {row.system: row.metrics["pss_mb"] for row in rows if row.size["n_processes"] == n}
            width = 0.8 / len(counts)
            places = [systems.index(system) + (i - (len(counts) - 1) / 2) * -width for system in found]
            axes.barh(
                places,
                [value or 0.0 for value in found.values()],
                height=width * 0.9,
                label=f"{n} process{'es' * (n > 1)}",
                color=COLORS[i],
            )
        axes.set_yticks(range(len(systems)), systems)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("MB in all")

    return picture(draw, height=1.4 + 0.45 * len(systems)) if rows else None


def roofline(record: Record) -> str | None:
    """Draw each row's rate under the machine's own: bandwidth times intensity, and matrix products."""
    rows = _measured(record, "roofline")

    def draw(axes: Axes) -> None:
        peak = max(row.metrics["sgemm_gflops"] or 0.0 for row in rows)
        bandwidth = max(row.metrics["bandwidth_gb_per_s"] or 0.0 for row in rows)
        intensities = [row.metrics["intensity"] or 0.0 for row in rows]
        x = [min(*intensities, peak / bandwidth) / 2, peak / bandwidth, max(*intensities, peak / bandwidth) * 2]
        axes.plot(x, [min(peak, bandwidth * at) for at in x], c=INK, lw=1.5)
        axes.annotate(
            f"{peak:.0f} GFLOP/s, {bandwidth:.0f} GB/s", (x[1], peak), xytext=(4, 5), textcoords="offset points"
        )
        for style, (system, of_system) in _systems(rows):
            of_rows = _values(of_system, "intensity")
            axes.plot(of_rows, _values(of_system, "gflops"), label=system, **style)
        axes.set_xscale("log")
        _labels(axes, "operations a byte of weights", "GFLOP/s")

    return picture(draw, height=HEIGHT + 0.14 * _n_systems(rows)) if rows else None


PLOTS: Mapping[str, Callable[[Record], str | None]] = {
    "Speed against quality": speed_against_quality,
    "Latency over load": latency_over_load,
    "Throughput over length": throughput_over_length,
    "Memory": memory,
    "Roofline": roofline,
}


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the Pareto front: systems that no other beats in both drift and speed, from the least drift on."""
    front: list[str] = []
    for name, (_, speed) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if not front or speed > points[front[-1]][1]:
            front.append(name)
    return front


def _labels(axes: Axes, x: str, y: str) -> None:
    """Name the axes; y is logarithmic, with ticks at 1, 2 and 5 in words like 20k."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_minor_formatter(EngFormatter(sep=""))


def _measured(record: Record, suite: str) -> list[Row]:
    return [row for row in record.of(suite) if row.reason is None]


def _values(rows: Sequence[Row], metric: str) -> list[float]:
    return [row.metrics[metric] or float("nan") for row in rows]


def _systems(rows: Sequence[Row]) -> list[tuple[dict[str, Any], tuple[str, list[Row]]]]:
    by_system: dict[str, list[Row]] = {}
    for row in rows:
        by_system.setdefault(row.system, []).append(row)
    return [(_mark(item[0]), item) for item in by_system.items()]


def _mark(system: str) -> dict[str, Any]:
    """Return a system's colour and marker, the same in every picture."""
    return mark(list(SYSTEMS).index(system) if system in SYSTEMS else 0)


def _n_systems(rows: Sequence[Row]) -> int:
    return len({row.system for row in rows})


def _speed(row: Row | None) -> float:
    return (row.metrics["pairs_per_s"] or 0.0) if row else 0.0
