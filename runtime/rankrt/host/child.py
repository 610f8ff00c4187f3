"""Processes that run a module of ours, and import nothing from the folder that the caller is in.

`python -m` puts the current folder in front of the import path, `python FILE` the file's. A `random.py` or a `numpy/`
in it would run in place of the library. A child is this file, started by its absolute path. It gets its import path
from its parent, without these folders. It takes rankrt from the parent's folder.
"""

import json
import os
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from runpy import run_module

_FILE = os.path.abspath(__file__)


def child_command(module: str, *arguments: str) -> list[str]:
    """Return the command of a process that runs a module as `python -m` does."""
    return [sys.executable, "-I", _FILE, json.dumps(_import_path(module)), module, *arguments]


def _import_path(module: str) -> list[str]:
    """Return the folders to import from: those of this process, without the caller's, and the module's own.

    The caller's are the current folder and that of the running script. PYTHONPATH may ask for them by name.
    """
    named = {os.path.realpath(folder) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder}
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None) if main.__spec__ is None else None  # `python -m` has a spec
    callers = {os.path.realpath(folder) for folder in ("", os.path.dirname(script or ""))} - named
    path = [os.path.abspath(folder) for folder in sys.path if os.path.realpath(folder) not in callers]
    package = module.partition(".")[0]
    if package != "rankrt" and (spec := find_spec(package)) and spec.submodule_search_locations:
        path.append(str(Path(spec.submodule_search_locations[0]).parent))  # last, so that it hides nothing
    return path


def _run(path: str, module: str) -> None:
    sys.path[:] = json.loads(path)
    folder = Path(_FILE).parents[1]  # of the package, one above this room
    spec = spec_from_file_location("rankrt", folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None, "this file is beside it"
    package = sys.modules["rankrt"] = module_from_spec(spec)
    spec.loader.exec_module(package)
    run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _, path, module, *arguments = sys.argv
    sys.argv[1:] = arguments
    _run(path, module)
