"""The documentation as a site: the pages as they stand in the repository, with all that they link to, in site/.

python -m scripts.site

Pages link to files outside docs/, such as the README and the records of benchmarks. So the site is built from a copy in
which everything has its place beside the others. A link to a page that is not there is an error.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "pages"  # mkdocs.yml names it
SITE = ROOT / "site"
STARTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
    shutil.rmtree(PAGES, ignore_errors=True)
    for file in reachable(STARTS):
        copy = PAGES / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT)
    if done.returncode == 0:
        print(f"{len(list(SITE.rglob('*.html')))} pages in {SITE.name}/")
    return done.returncode


def reachable(starts: list[Path]) -> set[Path]:
    """Return the files of the repository that the pages are and link to, and those that these link to."""
    found, waiting = set(starts), list(starts)
    while waiting:
        for target in links_of(waiting.pop()):
            if target not in found:
                found.add(target)
                waiting.append(target)
    return found


def links_of(page: Path) -> Iterator[Path]:
    """Yield the files that a page links to; a folder has no page."""
    if page.suffix != ".md":
        return
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
        file = (page.parent / target.replace("\\_", "_")).resolve()
        if file.is_file() and file.is_relative_to(ROOT):
            yield file


if __name__ == "__main__":
    sys.exit(main())
