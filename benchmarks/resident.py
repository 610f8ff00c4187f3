"""What a model holds resident after many real pairs, with its files in the page cache before and without.

    python -m benchmarks.resident --artifact ./artifact --precision int8 --data ../shared/data --pairs 1000

Memory that processes share counts for each by its share (the kernel's Pss). Around a page that is touched the kernel
maps those beside it, as far as they are in the page cache already: that costs nothing, but it counts. So each figure is
there twice. The largest tensor is the word table, of which a text touches the rows of its words. The last line on
standard output is the record as JSON.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables import Table
from rankrt import Reranker
from rankrt.artifact import Precision
from rankrt.prepared import PreparedModels
from rankrt.tokenizer import Pair
from tiny_reranker.corpus import questions_of

_RANGE = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")
_N_AT_ONCE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A part of a process's memory: the file it comes from, empty for none, and what of it is resident, in MB."""

    file: str
    mb: float


def main() -> None:
    options = _options()
    if options.is_probe:
        print(json.dumps(probe(options.artifact, options.precision, real_pairs(options.data, options.pairs))))
        return
    found = {}
    for pages in ("in the page cache", "not in the page cache"):
        if pages.startswith("not"):
            forget(PreparedModels().folder)
        found[pages] = _in_a_process()
    rows = [[part, *(f"{of[part]:.0f} MB" for of in found.values())] for part in next(iter(found.values()))]
    print(Table(heading=[f"after {options.pairs:,} pairs", *found], rows=rows).markdown())
    record = {"benchmark": "resident", "precision": options.precision, "n_pairs": options.pairs, "found": found}
    print(json.dumps(record))


def real_pairs(folder: Path, n: int) -> list[Pair]:
    """Return questions of XQuAD with the first of their candidates, English first."""
    pools = sorted(questions_of("train", folder), key=lambda pool: pool.language != "en")
    pairs = [
        (question.text, pool.passages[c]) for pool in pools for question in pool.questions for c in question.candidates
    ]
    return pairs[:n]


def probe(artifact: Path, precision: Precision, pairs: Sequence[Pair]) -> dict[str, float]:
    """Score pairs in this process and return what is resident of each part, in MB."""
    with Reranker.load(artifact, precision=precision) as reranker:
        for start in range(0, len(pairs), _N_AT_ONCE):
            reranker.score(pairs[start : start + _N_AT_ONCE])
        return by_part(mappings(Path("/proc/self/smaps").read_text()), str(PreparedModels().folder))


def by_part(found: Sequence[Mapping], prepared: str) -> dict[str, float]:
    """Sum up what is resident by what it is, all first."""
    of_model = [mapping.mb for mapping in found if mapping.file.startswith(prepared)]
    private = sum(mapping.mb for mapping in found if not mapping.file.startswith("/"))
    total, largest = sum(mapping.mb for mapping in found), max(of_model, default=0.0)
    return {
        "resident": total,
        "private": private,
        "the model's largest mapping": largest,
        "its other mappings": sum(of_model) - largest,
        "libraries": total - private - sum(of_model),
    }


def mappings(smaps: str) -> list[Mapping]:
    """Read what the kernel says of a process, range by range (proc_pid_smaps(5))."""
    found, file = [], ""
    for line in smaps.splitlines():
        if start := _RANGE.match(line):
            file = start[1]
        elif line.startswith("Pss:"):
            found.append(Mapping(file=file, mb=int(line.split()[1]) / 1e3))
    return found


def forget(folder: Path) -> None:
    """Let the kernel drop the files below a folder from the page cache, as far as no process maps them."""
    for path in folder.rglob("*.data"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # only clean pages are dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _in_a_process() -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.resident", *sys.argv[1:], "--is-probe"]
    answer: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return answer


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds xquad/")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--is-probe", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
