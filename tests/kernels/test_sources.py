"""The C++ sources as a reader meets them: each says first what it knows, in plain English."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.words import idioms, longest_sentence

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
FILES = sorted(path for path in KERNELS.rglob("*") if path.suffix in (".h", ".cpp"))


def comments(source: str) -> Sequence[str]:
    """Return the comments of a file. Lines of comments in a row are one comment; an indented line is a formula."""
    blocks = re.findall(r"(?:^[ ]*//.*\n)+", source, re.MULTILINE)
    alone = [re.sub(r"^[ ]*//(?:   .*)?", "", block, flags=re.MULTILINE) for block in blocks]
    return alone + re.findall(r"\S.*?[;{,)] +// (.+)", source)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(KERNELS)))
def test_a_source_begins_with_what_it_knows_in_plain_english(path: Path):
    source = path.read_text(encoding="utf-8")
    assert source.startswith("// ")
    assert [number for number, line in enumerate(source.splitlines(), 1) if len(line) > 120] == []
    found = comments(source)
    assert [idiom for text in found for idiom in idioms(text)] == []
    assert max(longest_sentence(text) for text in found) <= 40


def test_comments_are_found():
    source = "// One.\n// Two.\n//     x = 1\nint a;  // three\n    // Four.\n"
    assert [text.split() for text in comments(source)] == [["One.", "Two."], ["Four."], ["three"]]
