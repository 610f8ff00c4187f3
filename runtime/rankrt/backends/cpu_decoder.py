"""Decoders on the CPU: a session for each segment of layers, hidden states handed from one to the next.

A segment takes token ids or hidden states. It also takes the keys and values of a prefix that its rows share, which may
have no tokens. It gives a logit for each row, and hidden states for the next segment. It gives the keys and values of
those tokens, too, that another run will find before its own. docs/artifact.md describes the inputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from rankrt.arrays import Float32Array, Int32Array, Int64Array
from rankrt.backends import Logits
from rankrt.backends.cpu_lanes import CpuLanes, n_narrow_lanes, wide_and_narrow
from rankrt.backends.kept_prefixes import KeptPrefixes, Past
from rankrt.backends.planner import Capacity, Plan, plan
from rankrt.backends.session import import_onnxruntime, open_session, session_options
from rankrt.host.memory import changing_mappings
from rankrt.llm.exits import Keep
from rankrt.llm.prefixes import LEAST_SHARED, Prefixes, beginning_of, n_cut, own_prefixes, shared_prefixes
from rankrt.text.pairs import Encoded

# A tensor that stays where ONNX Runtime made it.
OrtValue: TypeAlias = Any
# Runs rows, by their numbers, on the sessions of a lane: one session for each segment.
Work: TypeAlias = Callable[[Int64Array, Sequence[Any]], None]
# Takes the keys and values of a run's first tokens, for each segment its part.
OnKept: TypeAlias = Callable[[Past], None]
# A row's last two tokens are what the last layer computes. One would be enough, but for a single query
# GroupQueryAttention takes another kernel, whose last bits differ from those of the same token among others.
N_LAST = 2
# Prefixes are computed for so many rows at a time that their keys and values take no more than this. Runs that are
# planned elsewhere leave so much of them for the next: 1,100 tokens of Qwen3-0.6B, 7,000 of Gemma-2B.
_PREFIX_BYTES = 256 << 20
# What different queries begin with is worth a run of its own from so many tokens on.
_LEAST_ROOT_TOKENS = 16
# Rows of about so many tokens wait between two segments at a time: 0.6 GB with 2,304 features.
_HELD_TOKENS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Pieces of rows of one run, concatenated: prefixes, and what comes after a prefix.

    states     ids, int32 (n_tokens,), or hidden states, float32 (n_tokens, n_features)
    offsets    int32 (n_pieces + 1,)
    starts     int64 (n_pieces,) the position of each piece's first token in its row
    after      int64 (n_pieces,) the piece that stands before a piece; -1 for none in this run
    n_passage  int64 (n_pieces,) how many of a piece's first tokens are a passage's
    """

    states: Any
    offsets: Int32Array
    starts: Int64Array
    after: Int64Array
    n_passage: Int64Array

    @classmethod
    def of(cls, pieces: Sequence["Piece"]) -> "Batch":
        """Concatenate pieces."""
        return cls(
            states=np.concatenate([piece.states for piece in pieces]),
            offsets=_offsets([len(piece.states) for piece in pieces]),
            starts=np.array([piece.start for piece in pieces], np.int64),
            after=np.array([-1 if piece.after is None else piece.after for piece in pieces], np.int64),
            n_passage=np.array([piece.n_passage for piece in pieces], np.int64),
        )

    @property
    def positions(self) -> Int64Array:
        """The position of each token in its row, (n_tokens,)."""
        shifts = self.starts - self.offsets[:-1]
        return np.arange(self.offsets[-1]) + np.repeat(shifts, np.diff(self.offsets))

    @property
    def before(self) -> Int32Array:
        """The tokens of this run that stand before each piece, (n_pieces, 2); none where both are 0."""
        stops = np.stack([self.offsets[:-1], self.offsets[1:]], axis=1)
        return np.where(self.after[:, None] < 0, 0, stops[self.after]).astype(np.int32)

    def compressed(self, ratio: int) -> "Batch":
        """Return the batch with the mean of each `ratio` hidden states of a passage in their place.

        The last mean of a passage may be of fewer. Each is summed token by token, so its bits are the same in any run.
        """
        if not self.n_passage.any():
            return self
        lengths = np.diff(self.offsets)
        # The first token of each mean, and every token that stays alone, in each piece.
        firsts = [np.r_[0:n:ratio, n:length] for n, length in zip(self.n_passage, lengths, strict=True)]
        places = np.concatenate([start + first for start, first in zip(self.offsets, firsts, strict=False)])
        counts = np.diff(places, append=self.offsets[-1])
        weights = (np.float32(1) / counts.astype(np.float32))[:, None]
        states = self.states[places] * weights
        for i in range(1, ratio):
            more = counts > i
            states[more] += self.states[places[more] + i] * weights[more]
        offsets = _offsets([len(first) for first in firsts])
        return replace(self, states=states, offsets=offsets, n_passage=-(-self.n_passage // ratio))

    @property
    def last_tokens(self) -> tuple[Int64Array, Int32Array]:
        """The last tokens of each piece, and where each piece's begin among them."""
        counts = np.minimum(np.diff(self.offsets), N_LAST)
        tokens = [np.arange(stop - n, stop) for stop, n in zip(self.offsets[1:], counts, strict=True)]
        return np.concatenate(tokens).astype(np.int64), _offsets(counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What a run through some segments gave: logits by exit, (n_pieces,), the pieces after it, and what was kept."""

    logits: dict[int, Float32Array]
    batch: Batch
    kept: Past


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Tokens of a row: its prefix, or the rest, which begins with the passage's `n_passage` tokens.

    `start` is its first position, `after` the piece that precedes it.
    """

    states: Any
    start: int = 0
    after: int | None = None
    n_passage: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """What all rows of a walk begin with and was computed before: so many tokens, and their keys and values."""

    n_tokens: int
    past: Past


class CpuDecoder:
    """A causal model on the CPU, cut after the layers `ends`. Threads may share it."""

    def __init__(
        self,
        graphs: Sequence[Path],
        ends: Sequence[int],
        *,
        ratios: Mapping[int, int] = MappingProxyType({}),
        n_threads: int,
        is_prepared: bool,
        emulates_vnni: bool = False,
        has_kernels: bool = False,
        shares_prefixes: bool = True,
    ) -> None:
        """Load the graphs of all segments, which end after the layers `ends`.

        `ratios` are those by which passages are compressed, by layer. Without `shares_prefixes` every row computes all
        its tokens.
        """
        self._shares_prefixes = shares_prefixes
        self._prefixes = shared_prefixes if shares_prefixes else own_prefixes
        self._kept = KeptPrefixes(_PREFIX_BYTES)
        self._segments = Segments(
            graphs,
            ends,
            ratios=ratios,
            n_threads=n_threads,
            is_prepared=is_prepared,
            emulates_vnni=emulates_vnni,
            has_kernels=has_kernels,
            on_idle=self._kept.clear,
        )

    @property
    def _cuts_prefixes(self) -> bool:
        """Whether a prefix may be computed in two parts: other sizes of heads have other blocks than `n_cut` knows."""
        size = self._segments.head_size
        return self._shares_prefixes and size & (size - 1) == 0

    @property
    def capacity(self) -> Capacity:
        """What the planner may count on."""
        return self._segments.capacity

    def logits(self, encoded: Encoded, exits: Sequence[int] = (), keep: Keep | None = None) -> Logits:
        """Divide rows into runs and return their logits; no layer after the last exit is computed."""
        exits, prefixes = exits or self._segments.ends[-1:], self._prefixes(encoded)
        each = prefixes.each(encoded)
        root = self._computed_root(each, exits[-1])
        if keep is not None:
            values = self._by_stages(Walk(self._segments, encoded, prefixes, exits, root), exits, keep)
        else:
            values = np.empty((len(exits), encoded.n_rows), np.float32)
            for rows in self._segments.blocks(prefixes):
                walk = Walk(self._segments, encoded, prefixes, exits, root)
                planned = walk.plan(rows)
                walk.keep_prefixes(planned.runs)
                self._segments.side_by_side(planned, walk.to_the_end(values))
        return Logits(values=values, n_saved_tokens=prefixes.n_saved_tokens + (len(each) - 1) * root.n_tokens)

    def run(self, encoded: Encoded, exits: Sequence[int] = (), *, is_wide: bool) -> Logits:
        """Return the logits of rows that run together; each prefix that they share is computed once.

        What all of them begin with is kept for later runs, until none has come for a second. A later run takes as much
        of it as it begins with itself: all for the same query, the instruction for another one.
        """
        exits, prefixes = exits or self._segments.ends[-1:], self._prefixes(encoded)
        values = np.empty((len(exits), encoded.n_rows), np.float32)
        each = prefixes.each(encoded)
        beginning = self._beginning(each)
        root = self._known_root(beginning, each, exits[-1])
        n_new = len(beginning) - root.n_tokens

        def keep(new: Past) -> None:
            self._kept.put(beginning.copy(), exits[-1], self._segments.joined(root.past, new))

        walk = Walk(self._segments, encoded, prefixes, exits, root)
        work = walk.to_the_end(values, n_kept=n_new if n_new >= LEAST_SHARED else 0, on_kept=keep)
        planned = Plan.of_one_run(encoded.n_rows, is_wide=is_wide)
        self._segments.side_by_side(planned, work)
        return Logits(values=values, n_saved_tokens=prefixes.n_saved_tokens + len(each) * root.n_tokens)

    def close(self) -> None:
        """Release the threads, and the sessions with their memory."""
        self._segments.close()
        self._kept.clear()

    def _by_stages(self, walk: "Walk", exits: Sequence[int], keep: Keep) -> Float32Array:
        """Take all rows to the first exit, and from each exit to the next those that `keep` returns."""
        encoded = walk.encoded
        values = np.full((len(exits), encoded.n_rows), np.nan, np.float32)
        walk.keep_prefixes([np.arange(encoded.n_rows)], least_runs=1)
        for block in _blocks(encoded):
            rows = block
            for number in range(len(exits)):
                walk.hold_only(rows if number else rows[:0])
                self._segments.side_by_side(walk.plan(rows), walk.to_exit(number, values))
                rows = keep(number, rows, values[number, rows])
                if not len(rows):
                    break
        return values

    def _beginning(self, each: Sequence[Int32Array]) -> Int32Array:
        """Return what all prefixes begin with, as far as it may be computed apart; all of it if they are the same."""
        alike = beginning_of(each)
        if all(len(ids) == len(alike) for ids in each):
            return alike if self._shares_prefixes else alike[:0]
        return alike[: n_cut(len(alike), each) if self._cuts_prefixes else 0]

    def _computed_root(self, each: Sequence[Int32Array], layer: int) -> Root:
        """Compute what different prefixes begin with, if it is worth a run of its own."""
        if len(each) < 2 or (n_tokens := len(beginning := self._beginning(each))) < _LEAST_ROOT_TOKENS:
            return self._segments.no_root
        found: list[Past] = []

        def compute(rows: Int64Array, sessions: Sequence[Any]) -> None:
            batch, stop = Batch.of([Piece(states=beginning)]), self._segments.stop(layer)
            passed = self._segments.through(
                sessions, batch, self._segments.no_root.past, (), stop=stop, n_kept=n_tokens
            )
            found.append(passed.kept)

        self._segments.side_by_side(Plan.of_one_run(1, is_wide=True), compute)
        return Root(n_tokens=n_tokens, past=found[0])

    def _known_root(self, beginning: Int32Array, each: Sequence[Int32Array], layer: int) -> Root:
        """Return what is kept of the beginning of all prefixes."""
        if (past := self._kept.get(beginning, layer)) is not None:
            return Root(n_tokens=len(beginning), past=past)
        n_alike, past = self._kept.most_alike(beginning, layer)
        n_tokens = n_cut(n_alike, each) if self._cuts_prefixes else 0
        if n_tokens < LEAST_SHARED:
            return self._segments.no_root
        return Root(n_tokens=n_tokens, past=self._segments.first_tokens(past, n_tokens))


class Segments:
    """The sessions of a model's segments, and the lanes that they run on. Nothing of a run stays here."""

    def __init__(
        self,
        graphs: Sequence[Path],
        ends: Sequence[int],
        *,
        ratios: Mapping[int, int],
        n_threads: int,
        is_prepared: bool,
        emulates_vnni: bool,
        has_kernels: bool,
        on_idle: Callable[[], None],
    ) -> None:
        n_narrow = n_narrow_lanes(n_threads, is_prepared=is_prepared or has_kernels)
        self.capacity = Capacity(layout="causal", n_threads=n_threads, n_narrow=n_narrow)
        self.ends = tuple(ends)
        self._ratios = ratios
        self._ort = import_onnxruntime()

        def load(n: int) -> list[Any]:
            options = [
                session_options(n, is_prepared=is_prepared, emulates_vnni=emulates_vnni, has_kernels=has_kernels)
                for _ in graphs
            ]
            return [open_session(graph, of_graph) for graph, of_graph in zip(graphs, options, strict=True)]

        self._wide, self._narrow = wide_and_narrow(load, self.capacity)
        shapes = [_prefix_shape(session) for session in self._wide]
        self.head_size = shapes[0][4]
        none = (self.ort_value(np.zeros((*shape[:3], 0, *shape[4:]), np.float32)) for shape in shapes)
        self.no_root = Root(n_tokens=0, past=tuple(none))
        self._lanes = CpuLanes(n_narrow, graphs[0].parent, on_idle)

    def blocks(self, prefixes: Prefixes) -> list[Int64Array]:
        """Divide rows into blocks whose prefixes fit in memory together; those without a prefix are in the first."""
        n_each = sum(int(np.prod(_prefix_shape(session))) for session in self._wide) * 4
        n_bytes = np.cumsum([len(ids) * n_each for ids in prefixes.ids])
        block_of_prefix = np.concatenate([n_bytes // _PREFIX_BYTES, [0]]).astype(np.int64)
        block_of_row = block_of_prefix[prefixes.of_row]
        return [np.flatnonzero(block_of_row == block) for block in np.unique(block_of_row)]

    def side_by_side(self, planned: Plan, work: Work) -> None:
        """Call work(rows, sessions) for each run of a plan, on as many threads as it is planned for."""
        self._lanes.run(planned, lambda rows: work(rows, self._wide), lambda rows: work(rows, self._narrow))

    def stop(self, layer: int) -> int:
        """Return how many segments lead to an exit."""
        return self.ends.index(layer) + 1

    def through(
        self,
        sessions: Sequence[Any],
        batch: Batch,
        pasts: Sequence[OrtValue],
        exits: Sequence[int],
        *,
        first: int = 0,
        stop: int,
        keep_hidden: bool = False,
        n_kept: int = 0,
    ) -> Passed:
        """Run a batch through the segments first to stop - 1, each after its part of a prefix.

        In the last one only what the logits need is computed, unless its hidden states are kept. Passages are
        compressed between two segments, after what is read at the end of the first.
        """
        logits, kept = {}, []
        for segment in range(first, stop):
            if segment > 0 and (ratio := self._ratios.get(self.ends[segment - 1])) is not None:
                if not isinstance(batch.states, np.ndarray):
                    batch = replace(batch, states=batch.states.numpy())
                batch = batch.compressed(ratio)
            goes_on = segment < stop - 1 or keep_hidden
            all_tokens = np.arange(batch.offsets[-1], dtype=np.int64), batch.offsets
            tokens, offsets = all_tokens if goes_on else batch.last_tokens
            wanted = {"logits": self.ends[segment] in exits, "hidden": goes_on, "kept": n_kept > 0}
            feed = {
                "input_ids" if segment == 0 else "states": batch.states,
                "row_offsets": batch.offsets,
                "tokens_before": batch.before,
                "positions": batch.positions,
                "prefix": pasts[segment],
                "last_layer_tokens": tokens,
                "last_layer_offsets": offsets,
                "n_kept": np.array([n_kept], np.int64),
            }
            found = self._outputs(sessions[segment], feed, [name for name, is_wanted in wanted.items() if is_wanted])
            if "logits" in found:
                logits[self.ends[segment]] = found["logits"].numpy()
            if "kept" in found:
                kept.append(found["kept"])
            batch = replace(batch, states=found.get("hidden"))
        return Passed(logits=logits, batch=batch, kept=tuple(kept))

    def first_tokens(self, past: Past, n_tokens: int) -> Past:
        """Return the first tokens of a prefix."""
        if past[0].shape()[3] == n_tokens:
            return past
        return tuple(self.ort_value(np.ascontiguousarray(part.numpy()[:, :, :, :n_tokens])) for part in past)

    def joined(self, past: Past, new: Past) -> Past:
        """Return a prefix with the tokens after it."""
        if past is self.no_root.past:
            return new
        parts = zip(past, new, strict=True)
        return tuple(self.ort_value(np.concatenate([x.numpy(), y.numpy()], axis=3)) for x, y in parts)

    def ort_value(self, array: Any) -> OrtValue:
        """Hand an array to ONNX Runtime."""
        return self._ort.OrtValue.ortvalue_from_numpy(array)

    def close(self) -> None:
        """Release the threads, and the sessions with their memory."""
        self._lanes.close()
        self._let_go()

    def __del__(self) -> None:
        if changing_mappings is not None:  # the interpreter empties modules before the last objects go
            self._let_go()

    def _let_go(self) -> None:
        with changing_mappings():
            self._wide, self._narrow, self.no_root = [], [], Root(n_tokens=0, past=())

    def _outputs(self, session: Any, feed: dict[str, Any], names: list[str]) -> dict[str, OrtValue]:
        values = {name: self.ort_value(x) if isinstance(x, np.ndarray) else x for name, x in feed.items()}
        # Something has to be asked for, even where only a prefix is passed on.
        names = names or ["logits"]
        return dict(zip(names, session.run_with_ort_values(names, values), strict=True))


class Walk:
    """Rows on their way through the segments to some exits."""

    def __init__(
        self,
        segments: Segments,
        encoded: Encoded,
        prefixes: Prefixes,
        exits: Sequence[int],
        root: Root,
    ) -> None:
        self.encoded = encoded
        self._segments = segments
        self._prefixes = prefixes
        self._exits = exits
        self._root = root
        # How many segments lead to each exit.
        self._stops = [segments.stop(layer) for layer in exits]
        # The hidden states of rows after the segments that they have passed.
        self._hidden: dict[int, Float32Array] = {}
        # The prefixes that were computed before their rows, by their numbers; any other goes with its rows.
        self._pasts: dict[int, Past] = {}

    def plan(self, rows: Int64Array) -> Plan:
        """Plan the runs of rows; those of one run share a prefix, or none does. Returns row numbers."""
        is_alone = self._prefixes.of_row < 0
        own = self._prefixes.own_lengths(self.encoded) - np.where(is_alone, self._root.n_tokens, 0)
        found = plan(own[rows], self._segments.capacity, self._prefixes.of_row[rows])
        return Plan(wide=tuple(rows[run] for run in found.wide), narrow=tuple(rows[run] for run in found.narrow))

    def keep_prefixes(self, runs: Sequence[Int64Array], *, least_runs: int = 2) -> None:
        """Compute the prefixes that are shared by so many runs: keys and values, for each segment its part."""
        numbers, n_runs = np.unique([self._prefixes.of_row[run[0]] for run in runs], return_counts=True)
        n_root, past = self._root.n_tokens, self._root.past
        shared = [int(number) for number in numbers[n_runs >= least_runs] if number >= 0]
        rests = {number: self._prefixes.ids[number][n_root:] for number in shared}
        self._pasts |= {number: past for number, rest in rests.items() if not len(rest)}
        wanted = [number for number in shared if number not in self._pasts]

        def compute(chosen: Int64Array, sessions: Sequence[Any]) -> None:
            batch = Batch.of([Piece(states=rests[wanted[i]], start=n_root) for i in chosen])
            passed = self._segments.through(
                sessions, batch, past, (), stop=self._stops[-1], n_kept=int(batch.offsets[-1])
            )
            parts = [np.split(part.numpy(), batch.offsets[1:-1], axis=3) for part in passed.kept]
            for place, i in enumerate(chosen):
                kept = (self._segments.ort_value(np.ascontiguousarray(part[place])) for part in parts)
                self._pasts[wanted[i]] = self._segments.joined(past, tuple(kept))

        lengths = np.array([len(rests[number]) for number in wanted], np.int64)
        self._segments.side_by_side(plan(lengths, self._segments.capacity), compute)

    def to_the_end(self, values: Float32Array, *, n_kept: int = 0, on_kept: OnKept = lambda kept: None) -> Work:
        """Return what runs rows from their ids to the last exit and writes the logits of each, (n_exits, n_rows).

        `on_kept` is called with the keys and values of the first `n_kept` tokens after the root, if there are any.
        """

        def run(rows: Int64Array, sessions: Sequence[Any]) -> None:
            batch, ends = self._batch(rows)
            passed = self._segments.through(
                sessions, batch, self._past(rows), self._exits, stop=self._stops[-1], n_kept=n_kept
            )
            values[:, rows] = [passed.logits[layer][ends] for layer in self._exits]
            if n_kept:
                on_kept(passed.kept)

        return run

    def to_exit(self, number: int, values: Float32Array) -> Work:
        """Return what runs rows to an exit from the one before and writes the logits there, (n_exits, n_rows)."""
        first, stop = self._stops[number - 1] if number else 0, self._stops[number]
        goes_on = number < len(self._exits) - 1

        def run(rows: Int64Array, sessions: Sequence[Any]) -> None:
            (batch, ends), layer = self._batch(rows), self._exits[number]
            passed = self._segments.through(
                sessions, batch, self._past(rows), (layer,), first=first, stop=stop, keep_hidden=goes_on
            )
            if goes_on:
                parts = np.split(passed.batch.states.numpy(), passed.batch.offsets[1:][ends][:-1])
                self._hidden |= {int(row): part for row, part in zip(rows, parts, strict=True)}
            values[number, rows] = passed.logits[layer][ends]

        return run

    def hold_only(self, rows: Int64Array) -> None:
        """Drop the hidden states of all rows but these: the others go no further."""
        self._hidden = {int(row): self._hidden[int(row)] for row in rows}

    def _batch(self, rows: Int64Array) -> tuple[Batch, list[int]]:
        """Return rows as pieces, and which piece each row ends with."""
        pieces: list[Piece] = []
        ends, place_of = [], {}
        for row in map(int, rows):
            number, n_prefix = int(self._prefixes.of_row[row]), int(self._prefixes.lengths[row])
            # As far as this walk computes them: no token of what was computed before.
            n_before = n_prefix if number in self._pasts else self._root.n_tokens
            states = self._hidden.get(row, self.encoded.row(row)[n_before:])
            prefix, rest = states[: n_prefix - n_before], states[n_prefix - n_before :]
            if len(prefix) and (number < 0 or number not in place_of):
                place_of[number] = len(pieces)
                pieces.append(Piece(states=prefix, start=n_before))
            after = place_of[number] if len(prefix) else None
            # A row without a prefix has too few tokens after it for a passage.
            n_passage = max(0, len(rest) - self.encoded.n_suffix) if n_prefix else 0
            pieces.append(Piece(states=rest, start=n_prefix, after=after, n_passage=n_passage))
            ends.append(len(pieces) - 1)
        return Batch.of(pieces), ends

    def _past(self, rows: Int64Array) -> Sequence[OrtValue]:
        return self._pasts.get(int(self._prefixes.of_row[rows[0]]), self._root.past)


def _blocks(encoded: Encoded) -> list[Int64Array]:
    """Divide rows into blocks whose hidden states may be in memory together."""
    block_of_row = encoded.offsets[:-1] // _HELD_TOKENS
    return [np.flatnonzero(block_of_row == block) for block in np.unique(block_of_row)]


def _offsets(lengths: Any) -> Int32Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _prefix_shape(session: Any) -> list[int]:
    """Return the shape of a prefix of one token: layers, keys and values, heads, tokens, features of a head."""
    (prefix,) = (node for node in session.get_inputs() if node.name == "prefix")
    return [n if isinstance(n, int) else 1 for n in prefix.shape]
