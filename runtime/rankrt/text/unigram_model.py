"""The Unigram model of a tokenizer, over a vocabulary in arrays that processes share through the page cache.

The tokenizers library keeps a vocabulary in hash maps: XLM-R's 250,002 pieces take 287 MB of every process and 0.7 s to
build. Here they are a trie in 8 MB of arrays, mapped from a file. Knows single words, not how a text divides into them.
Ids are those of the library (`models/unigram/model.rs`, encode_optimized), also for ties.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain, islice
from math import inf
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rankrt.arrays import Float64Array, Int32Array, Int64Array
from rankrt.errors import InputError

CodePoints: TypeAlias = npt.NDArray[np.uint32]

# The cost of a character without a piece of its own, below the least likely piece.
_UNKNOWN_PENALTY = 10.0
# A node and a code point (at most 0x10FFFF) make one number. The mark, which no text has, follows every word.
_CODE_POINT_BITS, _MARK = 21, 0x1FFFFF
# Finding pieces takes about 500 bytes of arrays and lists a character.
_BLOCK_CHARS = 1 << 14
# Most words of a text have occurred before. A word of this length takes some 300 bytes with its ids.
_MAX_REMEMBERED_WORDS, _MAX_REMEMBERED_CHARS = 16_384, 32
# At most so many characters of a word are read to decide its next piece. Only a word like "aaaa" needs more than 50.
_MAX_UNDECIDED_CHARS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The pieces of a Unigram model as a trie. Nodes are numbered by depth, then by their path; 0 is the root.

    edges    (n_nodes - 1,) of node i + 1: its parent << 21 | its code point; ascending, for a binary search
    pieces   (n_nodes,) the id of the piece that ends at a node, -1 where none does
    scores   (n_pieces,) log probabilities
    unknown  (1,) the id for characters without a piece
    """

    edges: Int64Array
    pieces: Int32Array
    scores: Float64Array
    unknown: Int32Array

    @classmethod
    def of(cls, pieces: Sequence[tuple[str, float]], unknown: int) -> "Vocabulary":
        """Build the trie of pieces with their scores, in the order of their ids; of equal pieces the last counts."""
        codes, stops = _with_marks([piece for piece, _ in pieces])
        places = np.concatenate([[0], stops[:-1] + 1])
        nodes, n_nodes, levels = np.zeros(len(pieces), np.int64), 1, [np.zeros(0, np.int64)]
        while len(longer := np.flatnonzero(places < stops)):
            level, child = np.unique(_edges(nodes[longer], codes[places[longer]]), return_inverse=True)
            nodes[longer] = n_nodes + child
            places[longer] += 1
            n_nodes += len(level)
            levels.append(level)
        piece_of_node = np.full(n_nodes, -1, np.int32)
        piece_of_node[nodes] = np.arange(len(pieces))
        return cls(
            edges=np.concatenate(levels),
            pieces=piece_of_node,
            scores=np.array([score for _, score in pieces]),
            unknown=np.array([unknown], np.int32),
        )

    def save(self, folder: Path) -> None:
        """Write one file an array."""
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def open(cls, folder: Path) -> "Vocabulary":
        """Map the files of `save`. Raises OSError or ValueError if they are missing or damaged."""
        mapped = {field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r") for field in fields(cls)}
        return cls(**{name: np.asarray(array) for name, array in mapped.items()})

    @property
    def longest(self) -> int:
        """The characters of the longest piece."""
        node, depth = len(self.edges), 0  # the last node is one of the deepest
        while node:
            node = int(self.edges[node - 1]) >> _CODE_POINT_BITS
            depth += 1
        return depth

    def find(self, codes: CodePoints, starts: Int64Array) -> Iterator[tuple[Int64Array, Int64Array, Int32Array]]:
        """Yield the pieces that begin at one of `starts`, by ascending length: their starts, stops and ids."""
        nodes, stops = np.zeros(len(starts), np.int64), starts
        while len(starts):
            edges = _edges(nodes, codes[stops])
            nodes = np.searchsorted(self.edges, edges)
            there = np.flatnonzero(self.edges[np.minimum(nodes, len(self.edges) - 1)] == edges)
            nodes, starts, stops = nodes[there] + 1, starts[there], stops[there] + 1
            ids = self.pieces[nodes]
            whole = np.flatnonzero(ids >= 0)
            yield starts[whole], stops[whole], ids[whole]


class Piece(NamedTuple):
    """A piece of a word: its id, its first character, its last + 1."""

    id: int
    start: int
    stop: int


class Unigram:
    """Cuts words into their most likely pieces. Threads may share one."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.longest = vocabulary.longest
        self.unknown = int(vocabulary.unknown[0])
        self._vocabulary = vocabulary
        self._unknown_score = float(vocabulary.scores.min()) - _UNKNOWN_PENALTY
        self._remembered: dict[str, tuple[int, ...]] = {}

    def ids(self, texts: Sequence[Sequence[str]]) -> list[Int32Array]:
        """Return the ids of texts, each given as its words."""
        ids_of = self._ids_of(dict.fromkeys(chain.from_iterable(texts)))
        return [np.array([i for word in words for i in ids_of[word]], np.int32) for words in texts]

    def pieces(self, words: Sequence[str]) -> list[list[Piece]]:
        """Return the most likely pieces of each word; adjacent characters without a piece become one unknown."""
        codes, stops = _with_marks(words)
        starts = np.concatenate([[0], stops[:-1] + 1])
        origins, ids = self._best_pieces(codes, starts)
        return [self._path(origins, ids, *ends) for ends in zip(starts.tolist(), stops.tolist(), strict=True)]

    def _ids_of(self, words: Iterable[str]) -> dict[str, tuple[int, ...]]:
        remembered = self._remembered
        ids_of = {word: remembered[word] for word in words if word in remembered}
        if not (new := [word for word in words if word not in ids_of]):
            return ids_of
        found = {word: tuple(piece.id for piece in pieces) for word, pieces in zip(new, self.pieces(new), strict=True)}
        self._remember(found)
        return ids_of | found

    def _remember(self, found: dict[str, tuple[int, ...]]) -> None:
        if len(self._remembered) + len(found) > _MAX_REMEMBERED_WORDS:
            self._remembered = {}  # a new one, as another thread may be reading the old one
        short = (word for word in found if len(word) <= _MAX_REMEMBERED_CHARS)
        self._remembered.update((word, found[word]) for word in islice(short, _MAX_REMEMBERED_WORDS))

    def _best_pieces(self, codes: CodePoints, word_starts: Int64Array) -> tuple[list[int], list[int]]:
        """Return, for every place, the start and the id of the last piece of the best path to it (Viterbi).

        Of equal paths, the one whose last piece starts first is kept, as in the library.
        """
        scores = np.full(len(codes), -np.inf)
        scores[word_starts] = 0
        best, origins, ids = scores.tolist(), [0] * len(codes), [0] * len(codes)
        for start, stop, id_, score in self.candidates(codes, np.flatnonzero(codes != _MARK)):
            through = best[start] + score
            if through > best[stop]:
                best[stop], origins[stop], ids[stop] = through, start, id_
        return origins, ids

    def candidates(self, codes: CodePoints, places: Int64Array) -> Iterator[tuple[int, int, int, float]]:
        """Yield all pieces that begin at one of `places`, in order of their starts: start, stop, id and score."""
        for i in range(0, len(places), _BLOCK_CHARS):
            found = [*self._vocabulary.find(codes, places[i : i + _BLOCK_CHARS])]
            starts, stops, ids = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
            scores = self._vocabulary.scores[ids]
            lonely = np.setdiff1d(places[i : i + _BLOCK_CHARS], found[0][0], assume_unique=True)
            starts, stops = np.concatenate([starts, lonely]), np.concatenate([stops, lonely + 1])
            ids = np.concatenate([ids, np.full(len(lonely), self.unknown, np.int32)])
            scores = np.concatenate([scores, np.full(len(lonely), self._unknown_score)])
            order = np.argsort(starts, kind="stable")
            yield from zip(*(array[order].tolist() for array in (starts, stops, ids, scores)), strict=True)

    def _path(self, origins: list[int], ids: list[int], start: int, stop: int) -> list[Piece]:
        path: list[Piece] = []
        place = stop
        while place > start:
            origin, id_ = origins[place], ids[place]
            if path and id_ == path[-1].id == self.unknown:
                path[-1] = Piece(id_, origin - start, path[-1].stop)
            else:
                path.append(Piece(id_, origin - start, place - start))
            place = origin
        return path[::-1]


class LongWord:
    """A word that arrives in parts, and is divided into pieces as far as later parts cannot change them.

    `Unigram` finds, for every place, the best path from the word's beginning to it. No piece has more than `longest`
    characters. So the best path of the whole word passes one of the last `longest` places, whatever follows. Up to that
    place it is the best path to it. So the common beginning of the best paths to all these places is decided. Only the
    undecided rest is kept: some 20 characters of most text, but all of a word like "aaaa", whose first piece can depend
    on its length.
    """

    def __init__(self, unigram: Unigram) -> None:
        self._unigram = unigram
        self._codes = np.zeros(0, np.uint32)  # of the characters that no path has left yet
        self._scores = [0.0]  # of the best paths to these characters, and to the one after the last
        self._decided = 0  # up to this place all is decided; from there on, for each place:
        self._lengths, self._ids = array("H", [0]), array("i", [0])  # the best path's last piece
        self._open: Piece | None = None  # an unknown piece at the end of the decided part, which may still grow
        self._next_look = 0

    def add(self, part: str) -> list[Piece]:
        """Take the next characters; return the pieces that are decided now.

        Raises InputError if a million characters decide nothing, which takes 2 s of a core.
        """
        self._take(part)
        if len(self._ids) > _MAX_UNDECIDED_CHARS:
            raise InputError(
                f"a text repeats itself for more than {_MAX_UNDECIDED_CHARS} characters without a space, so that its"
                " first token depends on its last character; shorten it"
            )
        self._walk(max(0, len(self._codes) - self._unigram.longest + 1))
        if len(self._ids) <= self._next_look:
            return []
        pieces = self._settle(self._common_place())
        self._next_look = 2 * len(self._ids)  # looking costs the undecided part, so only when that has doubled
        return pieces

    def finish(self) -> list[Piece]:
        """Return the rest of the pieces."""
        self._walk(len(self._codes))
        return self._settle(self._decided + len(self._ids) - 1, is_end=True)

    def _take(self, part: str) -> None:
        self._codes = np.concatenate([self._codes, np.frombuffer(part.encode("utf-32-le"), np.uint32)])
        self._scores += [-inf] * len(part)
        self._lengths.extend(bytes(len(part)))
        self._ids.extend(bytes(len(part)))

    def _walk(self, n_places: int) -> None:
        """Extend the best paths from the next places by all pieces that begin there."""
        codes = np.append(self._codes, np.uint32(_MARK))
        first, scores, lengths, ids = len(self._ids) - len(codes), self._scores, self._lengths, self._ids
        for start, stop, id_, score in self._unigram.candidates(codes, np.arange(n_places)):
            through = scores[start] + score
            if through > scores[stop]:
                scores[stop], lengths[first + stop], ids[first + stop] = through, stop - start, id_
        self._codes, self._scores = self._codes[n_places:], scores[n_places:]

    def _common_place(self) -> int:
        """Return the last place that is on the best paths to all of the last places."""
        last = len(self._ids) - 1 - len(self._codes)
        open_: set[int] = {*range(max(0, last - self._unigram.longest + 1), last + 1)}
        while len(open_) > 1:
            place = max(open_)
            open_.remove(place)
            open_.add(place - self._lengths[place])
        return self._decided + open_.pop()

    def _settle(self, stop: int, *, is_end: bool = False) -> list[Piece]:
        """Return the pieces up to a place, and forget them."""
        path: list[Piece] = []
        place, first, unknown = stop, self._decided, self._unigram.unknown
        while place > first:
            length, id_ = self._lengths[place - first], self._ids[place - first]
            if path and id_ == path[-1].id == unknown:
                path[-1] = Piece(id_, place - length, path[-1].stop)
            else:
                path.append(Piece(id_, place - length, place))
            place -= length
        path.reverse()
        del self._lengths[: stop - first], self._ids[: stop - first]
        self._decided = stop
        if self._open is not None:
            is_longer = bool(path) and path[0].id == unknown
            path[: int(is_longer)] = [self._open._replace(stop=path[0].stop) if is_longer else self._open]
        self._open = path.pop() if path and not is_end and path[-1].id == unknown else None
        return path


def _with_marks(words: Sequence[str]) -> tuple[CodePoints, Int64Array]:
    """Return the code points of words, each followed by the mark, and the places of the marks."""
    codes = np.frombuffer("".join(f"{word}\0" for word in words).encode("utf-32-le"), np.uint32).copy()
    marks = np.cumsum([len(word) + 1 for word in words], dtype=np.int64) - 1
    codes[marks] = _MARK
    return codes, marks


def _edges(parents: Int64Array, codes: CodePoints) -> Int64Array:
    return parents << _CODE_POINT_BITS | codes
