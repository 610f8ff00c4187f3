"""The rules of CONTRIBUTING.md's "Words", as far as a program can check them. Knows text, not files."""

import re
from collections.abc import Sequence

# Words and turns that our prose avoids. A name in code, such as `lie`, is not prose.
_IDIOMS = re.compile(
    r"\b(?:behind|whoever|nobody|somebody|heed(?:s|ed)?|anew|foreseen|at hand|to the last bit|lies?|go(?:es)? on"
    r"|(?<!there )(?:is|are) no)\b"
    r"|(?:^|(?<=[.!?] ))What (?:is|are|was|were|has|cannot|does)\b[^?]*$",
    re.IGNORECASE,
)
# A line of a table or of a tree in a docstring: a name, two spaces or more, and what it means.
_TABLE_ROW = re.compile(r"^[ │├└─]*[\w`*./<>-]+(?:, [\w`*./<>-]+)*  +(?=\S)", re.MULTILINE)


def sentences(text: str) -> Sequence[str]:
    """Split prose into sentences. A blank line, an item of a list and a row of a table end one, too."""
    text = re.sub(r"^ *[-*] ", "\n\n", _TABLE_ROW.sub("\n\n", text), flags=re.MULTILINE)
    return [" ".join(found.split()) for found in re.split(r"(?<=[.!?])\s+|\n\s*\n", text) if found.strip()]


def mean_words(text: str) -> float:
    """Return the mean number of words in a sentence; 0 for a text without any."""
    found = sentences(text)
    return sum(len(sentence.split()) for sentence in found) / max(1, len(found))


def longest_sentence(text: str) -> int:
    """Return the number of words in the longest sentence."""
    return max((len(sentence.split()) for sentence in sentences(text)), default=0)


def idioms(text: str) -> Sequence[str]:
    """Return the turns of a text that plain English does not have."""
    return [match.group(0) for sentence in sentences(text) for match in _IDIOMS.finditer(sentence)]
