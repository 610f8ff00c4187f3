"""Measure rerankers: suites times systems on one checkpoint, one record.

    python -m benchmarks.run latency throughput --systems rankrt torch sentence-transformers --model ./checkpoint

A system's name selects all that begin with it: `torch` is torch-eager, torch-sdpa, ... The baseline takes turns with
every other system, call by call. So if the machine's speed drifts, it drifts for both, and a ratio is always within a
run. A system that cannot be installed, loaded or run becomes a row with the reason. Ctrl-C keeps the measurements.
--resume keeps a record's values and adds the missing ones, so a long run can be made in pieces. The last line on
standard output is the summary as JSON.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness.environments import cache_folder
from benchmarks.harness.lab import REFERENCE, Case, Lab, Settings, open_model, pinned_cpus
from benchmarks.harness.worker import Budget, SystemFailed
from benchmarks.harness.workloads import KINDS, Source, read
from benchmarks.records.record import (
    Accelerator,
    Key,
    Record,
    RecordError,
    Row,
    Text,
    commit,
    continue_record,
    describe_accelerator,
    describe_machine,
    now,
    read_record,
    write_record,
)
from benchmarks.suites import SUITES
from benchmarks.systems import SYSTEMS, entry_of, members
from rankrt.errors import RankrtError
from rankrt.host.cpu import this_machine

RESULTS = Path(__file__).with_name("results")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        checkpoint = open_model(options.model)
        text_name, texts = read(options.text)
    except (RankrtError, OSError) as error:
        print(f"benchmarks.run: {error}", file=sys.stderr)
        return 1
    systems = list(dict.fromkeys(member for name in options.systems for member in members(name)))
    baseline = options.baseline or systems[0]
    source = Source(texts, checkpoint.folder / "tokenizer.json")
    path = options.output or RESULTS / f"{options.name or checkpoint.name}.json"
    with Lab(checkpoint, source, _settings(options), baseline, options.reference) as lab:
        try:
            earlier = read_record(path) if options.resume and path.exists() else None
            run = Run(lab, Text(name=text_name, sha256=texts.sha256), vars(options), path, earlier)
        except RecordError as error:
            print(f"benchmarks.run: {error}", file=sys.stderr)
            return 1
        is_complete = run.measure(options.suites, systems)
    print(json.dumps(run.summary()))
    return 0 if is_complete else 130


class Run:
    """The rows measured so far, written to disk after every system, so that no measurement is lost."""

    def __init__(
        self, lab: Lab, text: Text, options: dict[str, Any], path: Path, earlier: Record | None = None
    ) -> None:
        """Begin; an earlier record's rows are kept. Raises RecordError if it is not one of the same kind."""
        self._lab = lab
        self._text = text
        self._options = {name: _plain(value) for name, value in options.items()} | {"model": lab.checkpoint.name}
        self._path = path
        self._earlier = earlier
        self._rows: list[Row] = []
        self._started = time.perf_counter()
        self._accelerator = _accelerator(lab)
        self._record(is_complete=False)  # a record that cannot be continued is an error before anything is measured

    def measure(self, suites: Sequence[str], systems: Sequence[str]) -> bool:
        """Measure system by system, the baseline first; return whether the run is complete."""
        is_complete = False
        kept = {row.key: row for row in self._earlier.rows if row.reason is None} if self._earlier else {}
        try:
            for system in sorted(systems, key=lambda system: system != self._lab.baseline):
                for suite in suites:
                    self._add(measure(suite, system, self._lab, kept))
                self._write(is_complete=False)
            is_complete = True
        except KeyboardInterrupt:
            print("interrupted; the measurements are kept", file=sys.stderr)
        finally:
            self._write(is_complete=is_complete)
        return is_complete

    def summary(self) -> dict[str, Any]:
        """Return the content of the last line."""
        fastest = sorted(
            (row.metrics["times_baseline"] or 0.0, row.system, row.case, row.given)
            for row in self._rows
            if row.suite == "throughput" and row.reason is None
        )
        return {
            "record": str(self._path),
            "model": self._lab.model.name,
            "baseline": self._lab.baseline,
            "n_rows": len(self._rows),
            "n_without_a_value": sum(row.reason is not None for row in self._rows),
            "seconds": round(time.perf_counter() - self._started),
            "throughput": [
                {"system": system, "case": case, "given": given, "times_baseline": round(times, 3)}
                for times, system, case, given in fastest
            ],
            "shares": [
                {"system": row.system, "case": row.case}
                | {name: round(row.metrics[name] or 0.0, 3) for name in ("of_sgemm_from_memory", "of_sgemm_alone")}
                for row in self._rows
                if row.suite == "roofline" and row.reason is None
            ],
        }

    def _add(self, rows: Iterator[Row]) -> None:
        for row in rows:
            self._rows.append(row)
            print(f"{time.perf_counter() - self._started:6.0f} s  {describe(row)}", file=sys.stderr)

    def _write(self, *, is_complete: bool) -> None:
        write_record(self._record(is_complete=is_complete), self._path)

    def _record(self, *, is_complete: bool) -> Record:
        budget = self._lab.settings.budget
        record = Record(
            made=now(),
            commit=commit(),
            model=msgspec.structs.replace(self._lab.model, name=self._options["name"] or self._lab.model.name),
            machine=msgspec.structs.replace(
                describe_machine(budget.n_threads, budget.cpus), accelerator=self._accelerator
            ),
            text=self._text,
            baseline=self._lab.baseline,
            options=self._options,
            systems=self._lab.systems,
            rows=tuple(self._rows),
            is_complete=is_complete,
        )
        return continue_record(record, self._earlier) if self._earlier else record


def measure(suite: str, system: str, lab: Lab, kept: Mapping[Key, Row] = {}) -> Iterator[Row]:
    """Yield a row for each of a suite's cases: a kept one, a measurement, or the reason for none."""
    if not entry_of(system).place and suite != "load":
        return
    for case in SUITES[suite](lab, system):
        row = Row(suite=suite, system=system, case=case.name, given=case.given)
        yield kept.get(row.key) or _filled(row, case)


def _filled(row: Row, case: Case) -> Row:
    try:
        found = case.measure()
    except (SystemFailed, ValueError) as failure:
        # A record has no paths of one machine.
        return msgspec.structs.replace(row, reason=str(failure).replace(f"{cache_folder()}/", ""))
    return msgspec.structs.replace(
        row,
        size=found.size,
        metrics=found.metrics,
        seconds=found.seconds,
        baseline_seconds=found.baseline_seconds,
    )


def describe(row: Row) -> str:
    """Return a row as a progress line."""
    head = f"{row.suite:<10} {row.system:<30} {row.case:<18} {row.given:<11}"
    values = [f"{name} {value:.4g}" for name, value in row.metrics.items() if value is not None]
    return f"{head} {row.reason or '  '.join(values[:7])}"


def _accelerator(lab: Lab) -> Accelerator | None:
    """Return the GPU of the run with its rate, or None for a CPU. Raises RecordError if it has no GPU."""
    device = lab.settings.budget.device
    if device == "cpu":
        return None
    found = describe_accelerator(device, None)
    try:
        return msgspec.structs.replace(found, gemm_tflops=lab.ceiling("gemm-fp16", 1))
    except SystemFailed as failure:
        print(f"its rate at matrix products was not measured: {failure}", file=sys.stderr)
        return found


def _settings(options: argparse.Namespace) -> Settings:
    n_threads = options.threads or this_machine().cores.n
    return Settings(
        rounds=options.rounds,
        seconds=options.seconds,
        budget=Budget(
            n_threads=n_threads,
            cpus=pinned_cpus(n_threads),
            device=options.device,
            load_s=options.load_limit,
            call_s=options.call_limit,
        ),
        passages=tuple(options.passages),
        kinds=tuple(options.kinds),
        n_questions=options.questions,
        n_processes=tuple(options.processes),
        artifact=options.artifact,
        servers=dict(named.split("=", 1) for named in options.server),
        load_seconds=options.load_seconds,
    )


def _plain(value: Any) -> Any:
    """Return an option's value for a record: of a path only its name, because the rest is one machine's."""
    return value.name if isinstance(value, Path) else value


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="systems: " + " ".join(SYSTEMS),
    )
    parser.add_argument("suites", nargs="+", choices=SUITES, metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument(
        "--systems", nargs="+", required=True, metavar="NAME", help="names, beginnings of names, or module:class"
    )
    parser.add_argument("--model", required=True, metavar="CHECKPOINT", help="a folder, or a hub id")
    parser.add_argument("--name", help="its name in the record (the checkpoint's own)")
    parser.add_argument("--baseline", metavar="NAME", help="takes turns with all others (the first system)")
    parser.add_argument("--reference", default=REFERENCE, metavar="NAME", help="drift is from it (%(default)s)")
    parser.add_argument("--text", type=Path, help="lines of query, pos, neg; or a folder with xquad/ (the sample)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the record (benchmarks/results/MODEL.json)")
    parser.add_argument("--resume", action="store_true", help="add the missing values to the record, if it exists")
    parser.add_argument(
        "--artifact", type=Path, metavar="FOLDER", help="rankrt's artifact with all precisions, if you have it"
    )
    parser.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="load: the command of a server, with {python} {model} {port} {threads}, or its address",
    )
    parser.add_argument("--threads", type=int, help="for every system (the usable physical cores)")
    parser.add_argument(
        "--device", default="cpu", help='where systems compute: "cpu", "cuda", "cuda:1", "tensorrt" (%(default)s)'
    )
    parser.add_argument("--rounds", type=int, default=3, help="the fewest calls of a case (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="the least time of a case (%(default)s)")
    parser.add_argument(
        "--passages", type=int, nargs="+", default=[1, 8, 32, 100], metavar="N", help="of a request (%(default)s)"
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=["short", "mixed", "paragraphs", "512", "8192"],
        metavar="KIND",
        help="short, mixed, paragraphs, or tokens (%(default)s)",
    )
    parser.add_argument("--questions", type=int, default=100, help="of the quality suite (%(default)s)")
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[1, 2, 4],
        metavar="N",
        help="whose memory is measured (%(default)s)",
    )
    parser.add_argument("--load-seconds", type=float, default=10.0, help="the time of each offered load (%(default)s)")
    parser.add_argument(
        "--call-limit", type=float, default=120.0, metavar="S", help="the most seconds of a call (%(default)s)"
    )
    parser.add_argument(
        "--load-limit", type=float, default=300.0, metavar="S", help="the most seconds of loading (%(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        _check(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def _check(options: argparse.Namespace) -> None:
    """Raise ValueError for unknown names, before anything is built."""
    for name in options.systems:
        members(name)
    for name in filter(None, (options.baseline, options.reference)):
        if members(name) != [name]:
            raise ValueError(f"{name} stands for {', '.join(members(name))}: name one of them")
    if options.device.partition(":")[0] not in ("cpu", "cuda", "tensorrt"):
        raise ValueError(f"--device {options.device}: expected cpu, cuda, tensorrt, or one with a number, cuda:1")
    for kind in options.kinds:
        if kind not in KINDS and not kind.isdigit():
            raise ValueError(f"--kinds {kind}: expected {', '.join(KINDS)}, or a number of tokens")
    for named in options.server:
        if "=" not in named:
            raise ValueError(f"--server {named}: expected NAME=COMMAND")


if __name__ == "__main__":
    # A job that is cancelled, or out of time, keeps its measurements, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
