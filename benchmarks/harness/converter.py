"""The process of one conversion: python -m benchmarks.harness.converter PLACE SOURCE OUT.

It writes its peak memory into OUT. It imports the standard library only, because it runs in every system's environment.
"""

import resource
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    place, source, out = sys.argv[1:]
    module, _, attribute = place.partition(":")
    getattr(import_module(module), attribute)(Path(source), Path(out))
    of_all = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    (Path(out) / "peak_mb").write_text(str(max(of_all) * 1024 / 1e6))


if __name__ == "__main__":
    main()
