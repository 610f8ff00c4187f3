"""One session on a GPU: correctness, speed beside PyTorch, the parts of the time, and memory.

    python -m benchmarks.gpu --out ./session

The session needs the extras gpu and export. The last stage needs the extra server, too. PyTorch has to see the GPU.
The session writes FOLDER/results.json and FOLDER/report.md after each stage. The model stays in FOLDER/model. A second
call with --only uses the model again. The stage `make` writes it again, for example after a change of the exporter.
"""

import argparse
import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.session import RESULTS, STAGES, Session
from benchmarks.gpu.subject import SIZES, Subject
from benchmarks.records.record import commit
from rankrt.backends.session import installed_builds
from rankrt.host.cpu import this_machine
from rankrt.host.gpus import find_gpus

_BUDGET_S = 420.0


def main() -> None:
    options = _options()
    # The model is random, so its prepared files are of no use in the user's own cache.
    os.environ.setdefault("RANKRT_CACHE", str((options.out / "cache").absolute()))
    options.out.mkdir(parents=True, exist_ok=True)
    subject = Subject(SIZES[options.model], options.out / "model")
    session = Session(options.out, subject, conditions(options.model))
    session.run({name: stage for name, stage in STAGES.items() if name in options.only}, options.budget)
    print(f"\n{options.out / RESULTS}")


def conditions(model: str) -> dict[str, str]:
    """Return the conditions that all stages of a record share. A new record begins when one of them changes."""
    found, machine = find_gpus(), this_machine()
    builds = {**installed_builds(), **{name: version(name) for name in ("torch", "transformers") if find_spec(name)}}
    return {
        "gpu": ", ".join(map(str, found.found)) or f"none: {found.reason}",
        "driver": found.driver or "none",
        "host": f"{machine.processor}, {machine.cores.n} cores",
        "software": ", ".join(f"{name} {number}" for name, number in {"rankrt": commit(), **builds}.items()),
        "model": "small shapes: figures mean nothing" if model == "small" else f"{model}'s shape, random weights",
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the record and the model")
    parser.add_argument("--budget", type=float, default=_BUDGET_S, metavar="SECONDS", help="time of all stages")
    parser.add_argument(
        "--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help=" ".join(STAGES)
    )
    parser.add_argument(
        "--model",
        choices=SIZES,
        default=next(iter(SIZES)),
        metavar="NAME",
        help=f"whose shape is measured: {', '.join(SIZES)}; small is to try the script, and its figures mean nothing",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
