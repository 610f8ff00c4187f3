"""Do the one-time work of a run in advance: build environments, compile servers, convert the checkpoint, load systems.

    python -m benchmarks.prepare --systems rankrt torch --model ./checkpoint

A quiet machine is too valuable to wait for a compiler. After this a run only measures. A system that fails is reported
with the reason that the run's rows would show. Measures nothing for a record.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness.environments import python_of
from benchmarks.harness.lab import Lab, Settings, open_model, pinned_cpus
from benchmarks.harness.worker import Budget, SystemFailed
from benchmarks.harness.workloads import Source, read
from benchmarks.suites.load import SERVERS, tools_of
from benchmarks.systems import CEILINGS, SYSTEMS, entry_of, members
from rankrt.errors import RankrtError
from rankrt.host.cpu import this_machine


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        checkpoint = open_model(options.model)
    except RankrtError as error:
        print(f"benchmarks.prepare: {error}", file=sys.stderr)
        return 1
    n_threads = this_machine().cores.n
    budget = Budget(n_threads=n_threads, cpus=pinned_cpus(n_threads), load_s=options.load_limit)
    systems = list(dict.fromkeys(member for name in options.systems for member in members(name)))
    source = Source(read(None)[1], checkpoint.folder / "tokenizer.json")
    with Lab(checkpoint, source, Settings(budget=budget, artifact=options.artifact), systems[0]) as lab:
        for line in prepare_all(lab, systems):
            print(line, flush=True)
    return 0


def prepare_all(lab: Lab, systems: Sequence[str]) -> Iterator[str]:
    """Prepare system by system; yield the time of loading each, or the reason for its failure."""
    for environment in dict.fromkeys(entry.environment for entry in CEILINGS.values()):
        python_of(environment)
    for system in systems:
        try:
            yield f"{system}: {_prepare(lab, system)}"
        except SystemFailed as failure:
            yield f"{system}: {failure}"


def _prepare(lab: Lab, system: str) -> str:
    if system in SERVERS:
        tools_of(SERVERS[system], lab.settings.budget)
    if not entry_of(system).place:
        return "its server is ready"
    lab.path_for(system)
    started = time.perf_counter()
    with lab.start(system):
        return f"loads in {time.perf_counter() - started:.1f} s"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="systems: " + " ".join(SYSTEMS),
    )
    parser.add_argument("--systems", nargs="+", required=True, metavar="NAME", help="names, or beginnings of names")
    parser.add_argument("--model", required=True, metavar="CHECKPOINT", help="a folder, or a hub id")
    parser.add_argument("--artifact", type=Path, metavar="FOLDER", help="rankrt's artifact, if it was made before")
    parser.add_argument("--load-limit", type=float, default=300.0, metavar="S", help="for loading (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        for name in options.systems:
            members(name)
    except ValueError as error:
        parser.error(str(error))
    return options


if __name__ == "__main__":
    sys.exit(main())
