"""The cost of a model on a host: time to load, private memory of one and of two processes, peak of the longest row.

    python -m benchmarks.studies.memory --artifact ./artifact

Private memory is the kernel's anonymous memory, which no other process can share. The prepared model itself is mapped
from disk and shared through the page cache. The last line on standard output is the record as JSON.
"""

import argparse
import json
import subprocess
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from tokenizers import Tokenizer

from rankrt import Reranker
from rankrt.artifact.manifest import open_artifact
from rankrt.host.child import child_command
from rankrt.loading.tokenizer import open_tokenizer

_N_LOADS = 5
_TEXT = "The tides are the regular rising and falling of the sea. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--probe", choices=_PROBES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        print(json.dumps(_PROBES[options.probe](options.artifact)))
    else:
        print(json.dumps(measure(options.artifact)))


def measure(artifact: Path) -> dict[str, Any]:
    """Run probes one at a time, then one beside a reranker that is loaded here."""
    alone = [_probe(artifact, "reranker") for _ in range(_N_LOADS)]
    tokenizer, library = _probe(artifact, "tokenizer"), _probe(artifact, "library")
    with Reranker.load(artifact, precision="fp32") as reranker:
        second = _probe(artifact, "reranker")
        scored = private_mb()
        limit = reranker.artifact.manifest.max_length
        peak, after = _longest_row(reranker, limit)
    rows = [
        {"what": "loading a prepared model", "value": f"{median(run['load_s'] for run in alone):.1f} s"},
        {"what": "private memory, loaded", "value": f"{median(run['loaded_mb'] for run in alone):.0f} MB"},
        {"what": "of which the tokenizer", "value": f"{tokenizer['mb']:.0f} MB"},
        {
            "what": f"its {library['n_pieces']:,} pieces in the tokenizers library would be",
            "value": f"{library['mb']:.0f} MB",
        },
        {"what": "private memory, 32 passages scored", "value": f"{median(run['scored_mb'] for run in alone):.0f} MB"},
        {"what": "a second process beside it adds", "value": f"{second['loaded_mb']:.0f} MB"},
        {"what": f"peak while a row of {limit:,} tokens runs", "value": f"{peak:.0f} MB"},
        {"what": "private memory after it", "value": f"{after:.0f} MB"},
    ]
    return {"benchmark": "memory", "model": artifact.name, "before_the_long_row_mb": scored, "rows": rows}


def probe_reranker(artifact: Path) -> dict[str, float]:
    """Load and score in this process."""
    started = time.perf_counter()
    with Reranker.load(artifact, precision="fp32") as reranker:
        load_s, loaded_mb = time.perf_counter() - started, private_mb()
        reranker.rank("what are the tides?", [_TEXT * (1 + i % 8) for i in range(32)])
        return {"load_s": load_s, "loaded_mb": loaded_mb, "scored_mb": private_mb()}


def probe_tokenizer(artifact: Path) -> dict[str, float]:
    """Load the tokenizer alone, as a reranker does."""
    found, before = open_artifact(artifact), private_mb()
    tokenizer = open_tokenizer(found, prepare=True)
    tokenizer.ids([_TEXT])
    return {"mb": private_mb() - before}


def probe_library(artifact: Path) -> dict[str, float]:
    """Load the tokenizer alone, by the tokenizers library."""
    before = private_mb()
    tokenizer = Tokenizer.from_file(str(artifact / open_artifact(artifact).manifest.tokenizer))
    return {"n_pieces": tokenizer.get_vocab_size(), "mb": private_mb() - before}


_PROBES = {"reranker": probe_reranker, "tokenizer": probe_tokenizer, "library": probe_library}


def private_mb() -> float:
    """Return the anonymous resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status has no RssAnon")


def _longest_row(reranker: Reranker, n_tokens: int) -> tuple[float, float]:
    """Score one row of that length; return the highest private memory meanwhile, and the memory afterwards."""
    samples = [private_mb()]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            samples.append(private_mb())

    thread = threading.Thread(target=sample)
    thread.start()
    reranker.with_rules(max_length=n_tokens).rank("what are the tides?", [_TEXT * n_tokens])
    done.set()
    thread.join()
    return max(samples), private_mb()


def _probe(artifact: Path, what: str) -> dict[str, float]:
    command = child_command("benchmarks.studies.memory", "--artifact", str(artifact), "--probe", what)
    answer: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


if __name__ == "__main__":
    main()
