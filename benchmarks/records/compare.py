"""Compare two records of the same cases: which differences exceed the noise, and is anything slower by over 5 %?

    python -m benchmarks.records.compare old.json new.json [--systems rankrt]

If the baseline is the same build in both records, and another system, a call's time is divided by the time of the
baseline's call right after it. Then a slower machine does not count as a regression. Otherwise the seconds themselves
are compared. The interval is a bootstrap over the calls, 95 %. Exits 1 for a regression: slower by more than the limit,
with an interval above 1.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.records.record import Record, RecordError, Row, read_record
from benchmarks.records.statistics import Change, change, mean_change
from rankrt_finetune.reports.tables import Table

_LIMIT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The change of a case's time, new over old: above 1 is slower. None if there are too few calls."""

    old: Row
    new: Row
    change: Change | None
    is_paired: bool

    def is_regression(self, limit: float) -> bool:
        """Whether it is slower by more than the limit, beyond the noise."""
        return self.change is not None and self.change.ratio > 1 + limit and self.change.low > 1


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        old, new = read_record(options.old), read_record(options.new)
        found = list(differences(old, new, options.systems))
    except RecordError as error:
        print(f"benchmarks.records.compare: {error}", file=sys.stderr)
        return 2
    print(_table(found, options.limit).markdown())
    for system in dict.fromkeys(difference.new.system for difference in found):
        print(_mean(system, found))
    for row in lost(old, new, options.systems):
        print(f"{' / '.join(row.key)} was measured before and is not now: {row.reason or 'it has no row'}")
    regressions = [difference for difference in found if difference.is_regression(options.limit)]
    print(f"{len(regressions)} of {len(found)} cases are slower by more than {options.limit:.0%}")
    return int(bool(regressions) or bool(lost(old, new, options.systems)))


def differences(old: Record, new: Record, systems: Sequence[str] = ()) -> Iterator[Difference]:
    """Yield the cases that both records have timed, in the new one's order.

    Raises RecordError if they are of different models or thread counts, or have no case in common.
    """
    _check_comparable(old, new)
    before = {row.key: row for row in old.rows if row.seconds}
    both = [row for row in new.rows if row.seconds and row.key in before and _is_chosen(row, systems)]
    if not both:
        raise RecordError("the records have no timed case in common")
    is_same_baseline = _is_same_build(old, new)
    for row in both:
        is_paired = is_same_baseline and row.system != new.baseline and bool(row.baseline_seconds)
        yield _difference(before[row.key], row, is_paired=is_paired)


def lost(old: Record, new: Record, systems: Sequence[str] = ()) -> list[Row]:
    """Return the cases that were timed before and are not now: their new rows, or the old ones."""
    after = {row.key: row for row in new.rows}
    suites = {row.suite for row in new.rows}
    timed = [row for row in old.rows if row.seconds and row.suite in suites and _is_chosen(row, systems)]
    present = {row.system for row in new.rows}
    gone = [row for row in timed if row.system in present and (row.key not in after or after[row.key].reason)]
    return [after.get(row.key, row) for row in gone]


def _difference(old: Row, new: Row, *, is_paired: bool) -> Difference:
    is_paired = is_paired and bool(old.baseline_seconds)
    before, after = (_values(row) if is_paired else list(row.seconds) for row in (old, new))
    enough = min(len(before), len(after)) >= 2
    return Difference(old=old, new=new, change=change(before, after) if enough else None, is_paired=is_paired)


def _values(row: Row) -> list[float]:
    return [seconds / beside for seconds, beside in zip(row.seconds, row.baseline_seconds, strict=True)]


def _check_comparable(old: Record, new: Record) -> None:
    for name, before, after in (
        ("model", old.model.sha256, new.model.sha256),
        ("text", old.text.sha256, new.text.sha256),
        ("number of threads", old.machine.n_threads, new.machine.n_threads),
    ):
        if before != after:
            raise RecordError(f"the records differ in their {name} ({before} and {after}): nothing can be compared")


def _is_same_build(old: Record, new: Record) -> bool:
    """Tell whether both records have the same baseline. The commit identifies rankrt's own build."""
    if old.baseline != new.baseline or old.baseline not in old.systems or new.baseline not in new.systems:
        return False
    is_same = old.systems[old.baseline].versions == new.systems[new.baseline].versions
    return is_same and (not new.baseline.startswith("rankrt") or old.commit == new.commit)


def _is_chosen(row: Row, systems: Sequence[str]) -> bool:
    return not systems or any(row.system == name or row.system.startswith(f"{name}-") for name in systems)


def _table(found: Sequence[Difference], limit: float) -> Table:
    return Table(
        heading=["suite", "system", "case", "new / old", "95 %", "against", ""],
        rows=[[*_named(difference), *_judge(difference, limit)] for difference in found],
    )


def _named(difference: Difference) -> list[str]:
    row = difference.new
    return [row.suite, row.system, f"{row.case}, {row.given}"]


def _judge(difference: Difference, limit: float) -> list[str]:
    measured, against = difference.change, "baseline" if difference.is_paired else "seconds"
    if measured is None:
        return ["-", "-", against, "one call only"]
    verdict = "noise" if not measured.is_real else "faster" if measured.ratio < 1 else "slower"
    verdict = "REGRESSION" if difference.is_regression(limit) else verdict
    return [f"{measured.ratio:.3f}", f"{measured.low:.3f} to {measured.high:.3f}", against, verdict]


def _mean(system: str, found: Sequence[Difference]) -> str:
    ratios = [d.change.ratio for d in found if d.change is not None and d.new.system == system]
    if len(ratios) < 2:
        return f"{system}: too few cases for a mean"
    mean = mean_change(ratios)
    return f"{system}: x {mean.ratio:.3f} over {len(ratios)} cases ({mean.low:.3f} to {mean.high:.3f})"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.records.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--systems", nargs="+", default=[], metavar="NAME", help="names or beginnings (all)")
    parser.add_argument("--limit", type=float, default=_LIMIT, help="a regression, as a share (%(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
