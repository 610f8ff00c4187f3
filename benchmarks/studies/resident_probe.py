"""A process that loads a model, scores the pairs of standard input, and reports its resident memory at each moment.

Imports only modules that a host of a reranker would import. `benchmarks.studies.resident` starts it.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rankrt import Reranker
from rankrt.artifact.precisions import Precision
from rankrt.host.memory import Mapping, mappings
from rankrt.loading.prepared import Prepared

_N_AT_ONCE = 50
# Memory is released after one idle second.
_PAUSE_S = 2.0


def main(artifact: str, precision: Precision) -> None:
    pairs = [(query, passage) for query, passage in json.load(sys.stdin)]
    found = {}
    with Reranker.load(artifact, precision=precision) as reranker:
        found["loaded"] = resident()
        for start in range(0, len(pairs), _N_AT_ONCE):
            reranker.score(pairs[start : start + _N_AT_ONCE])
        found["right after"] = resident()
        time.sleep(_PAUSE_S)
        found["a pause later"] = resident()
    print(json.dumps(found))


def resident() -> dict[str, float]:
    """Return the resident memory of this process now, in MB."""
    return by_part(mappings(), Prepared().folder)


def by_part(found: Sequence[Mapping], prepared: Path) -> dict[str, float]:
    """Sum up resident memory by kind, in MB, the total first. The largest mapping of the model is a kind of its own."""
    of_model = [mapping for mapping in found if mapping.file and prepared in Path(mapping.file).parents]
    largest = max((mapping.n_bytes for mapping in of_model), default=0)
    kilobytes = {
        "private": sum(mapping.pss_kb for mapping in found if not mapping.file),
        "word table": sum(mapping.pss_kb for mapping in of_model if mapping.n_bytes == largest),
        "other weights and vocabulary": sum(mapping.pss_kb for mapping in of_model if mapping.n_bytes < largest),
    }
    total = sum(mapping.pss_kb for mapping in found)
    kilobytes["libraries"] = total - sum(kilobytes.values())
    return {part: kb * 1024 / 1e6 for part, kb in {"resident": total, **kilobytes}.items()}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])  # type: ignore[arg-type]  # checked where a variant is looked for
