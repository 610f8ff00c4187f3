"""The order of the rooms: a file or folder at the top of a package imports only rooms that stand before its own.

So there are no circles, and the listing can be read from the bottom to the top. This is the one place that states the
order; a new room takes its place in it.
"""

import ast
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = {
    "runtime/rankrt": (
        "errors notices arrays extras cancellation calls files refinement artifact host kernels options text llm"
        " backends loading scoring scale ranking reranker compat integrations cli server __main__"
    ),
    "export/rankrt_export": (
        "errors text checkpoint graph targets decoders precision reference architectures verify calibrate job"
        " portable pipeline push cli"
    ),
    "finetune/rankrt_finetune": "errors reports data bm25 resuming teaching mining training evaluation calibrate cli",
    "benchmarks": "systems records harness studies suites gpu run prepare",
}
# Each imports only those on its right.
PACKAGES = ["benchmarks", "rankrt_finetune", "rankrt_export", "rankrt"]


@pytest.mark.parametrize("package", ORDER)
def test_rooms_import_only_rooms_before_them(package: str):
    places = {name: place for place, name in enumerate(ORDER[package].split())}
    upwards = [
        f"{file}: {room} imports {target}"
        for file, room, target in imports_between_rooms(ROOT / package)
        if places[target] > places[room]
    ]
    assert upwards == []


@pytest.mark.parametrize("package", ORDER)
def test_each_room_has_a_place_in_the_order(package: str):
    assert set(ORDER[package].split()) == rooms(ROOT / package)


@pytest.mark.parametrize(("later", "earlier"), list(combinations(PACKAGES, 2)))
def test_packages_import_in_one_direction(later: str, earlier: str):
    folder = next(ROOT / package for package in ORDER if Path(package).name == earlier)
    assert [
        str(file) for file in folder.rglob("*.py") if later in {name.split(".")[0] for name in imported(file)}
    ] == []


def test_an_import_that_points_back_is_found(tmp_path: Path):
    for room, content in {"low": "import house.high.top", "high": "from house import low"}.items():
        (tmp_path / "house" / room).mkdir(parents=True)
        (tmp_path / "house" / room / "top.py").write_text(f"def later():\n    {content}\n")
    found = {(room, target) for _, room, target in imports_between_rooms(tmp_path / "house")}
    assert found == {("low", "high"), ("high", "low")}


def rooms(package: Path) -> set[str]:
    """Return the files and folders of Python at the top of a package."""
    return {path.stem for path in package.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))} - {"__init__"}


def imports_between_rooms(package: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield each import that leaves its room: the file, the room, and the room that is imported from."""
    known = rooms(package)
    for file in sorted(package.rglob("*.py")):
        room = file.relative_to(package).parts[0].removesuffix(".py")
        for name in imported(file):
            top, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if top == package.name and target in known and room in known and target != room:
                yield file, room, target


def imported(file: Path) -> Iterator[str]:
    """Yield the full names of what a file imports, at the top or in a function; the project has no relative imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
