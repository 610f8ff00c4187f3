"""The resident memory of a model: loaded, right after many real pairs, and after an idle while.

    python -m benchmarks.studies.resident --artifact ./artifact --precision int8 --data ../shared/data --pairs 1000

Shared memory counts for each process by its share (the kernel's Pss). Only one process runs here, so nearly all of it
counts. When a page of a file is touched, the kernel also maps its neighbours in the page cache. This costs nothing, but
it counts. The last line on standard output is the record as JSON.
"""

import argparse
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from rankrt.host.child import child_command
from rankrt.text.pairs import Pair
from rankrt_finetune.reports.tables import Table
from tiny_reranker.corpus import questions_of


def main() -> None:
    options = _options()
    pairs = real_pairs(options.data, options.pairs)
    command = child_command("benchmarks.studies.resident_probe", str(options.artifact), options.precision)
    answer = subprocess.run(command, input=json.dumps(pairs), check=True, stdout=subprocess.PIPE, text=True).stdout
    record = {
        "benchmark": "resident",
        "artifact": options.artifact.name,
        "precision": options.precision,
        "n_pairs": len(pairs),
        "found": json.loads(answer),
    }
    print(table(record["found"]).markdown())
    print(json.dumps(record))


def real_pairs(folder: Path, n: int) -> list[Pair]:
    """Return questions of XQuAD with the first of their candidates, English first."""
    pools = sorted(questions_of("train", folder), key=lambda pool: pool.language != "en")
    pairs = [
        (question.text, pool.passages[c]) for pool in pools for question in pool.questions for c in question.candidates
    ]
    return pairs[:n]


def table(found: Mapping[str, Mapping[str, float]]) -> Table:
    """Return the parts that are resident, in MB, at each moment."""
    parts = next(iter(found.values()))
    rows = [[part, *(f"{of_moment[part]:.0f} MB" for of_moment in found.values())] for part in parts]
    return Table(heading=["", *found], rows=rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds xquad/")
    parser.add_argument("--pairs", type=int, default=1000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
