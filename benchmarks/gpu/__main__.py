"""One session on a GPU: is it right, how fast is it beside PyTorch, where does the time go, what does it hold.

    python -m benchmarks.gpu --out ./session

Needs the extras gpu and export, and for the last stage server. PyTorch has to see the GPU, too. FOLDER/results.json and
FOLDER/report.md are written after each stage. The model stays in FOLDER/model, so a second call with --only goes on
with it. `make` writes it again, after a change of the exporter for example.
"""

import argparse
import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.session import RESULTS, STAGES, Session
from benchmarks.gpu.subject import FULL, SMALL, Subject
from benchmarks.records.record import commit
from rankrt.backends.session import installed_engines
from rankrt.host.cpu import this_machine
from rankrt.host.gpus import find_gpus

_BUDGET_S = 420.0


def main() -> None:
    options = _options()
    # What is prepared here is for a model that nobody else has.
    os.environ.setdefault("RANKRT_CACHE", str((options.out / "cache").absolute()))
    options.out.mkdir(parents=True, exist_ok=True)
    size = SMALL if options.small else FULL
    session = Session(options.out, Subject(size, options.out / "model"), conditions(is_small=options.small))
    session.run({name: stage for name, stage in STAGES.items() if name in options.only}, options.budget)
    print(f"\n{options.out / RESULTS}")


def conditions(*, is_small: bool) -> dict[str, str]:
    """Return what all stages of a record have in common; after a change of any of it a record begins anew."""
    found, machine = find_gpus(), this_machine()
    engines = {**installed_engines(), **{name: version(name) for name in ("torch", "transformers") if find_spec(name)}}
    return {
        "gpu": ", ".join(map(str, found.found)) or f"none: {found.reason}",
        "driver": found.driver or "none",
        "host": f"{machine.processor}, {machine.cores.n} cores",
        "software": ", ".join(f"{name} {number}" for name, number in {"rankrt": commit(), **engines}.items()),
        "model": "small shapes: figures mean nothing" if is_small else "bge-reranker-v2-m3's shape, random weights",
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the record and the model go")
    parser.add_argument("--budget", type=float, default=_BUDGET_S, metavar="SECONDS", help="for all stages together")
    parser.add_argument(
        "--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help=" ".join(STAGES)
    )
    parser.add_argument("--small", action="store_true", help="small shapes, to try the script; figures mean nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
