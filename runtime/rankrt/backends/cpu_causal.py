"""The CPU backend of causal models: a session for each segment of layers, hidden states handed from one to the next.

A segment takes token ids or hidden states, and the keys and values of a prefix that its rows have in common (none is a
prefix of no tokens); it gives a logit a row, hidden states for the next segment, and the keys and values of the tokens
that another run is to find before its own. docs/artifact.md describes the inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rankrt.arrays import Float32Array, Int32Array, Int64Array
from rankrt.artifact.manifest import InstructionSet
from rankrt.backends.cpu_lanes import CpuLanes, n_narrow_lanes, wide_and_narrow
from rankrt.backends.planner import Capacity, Plan, plan
from rankrt.backends.session import import_onnxruntime, open_session, session_options
from rankrt.host.memory import changing_mappings
from rankrt.llm import progressive
from rankrt.llm.prefixes import Prefixes
from rankrt.llm.progressive import Policy, Progress
from rankrt.text.pairs import Encoded

# A tensor that stays where ONNX Runtime made it.
OrtValue: TypeAlias = Any
# A row's last two tokens are what the last layer computes. One would be enough, but for a single query
# GroupQueryAttention takes another kernel, whose last bits differ from those of the same token among others.
N_LAST = 2
# Prefixes are computed for so many rows at a time that their keys and values take no more than this.
_PREFIX_BYTES = 256 << 20
# Rows of about so many tokens wait between two segments at a time: 0.6 GB with 2,304 features.
_HELD_TOKENS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Pieces of rows of one run, one behind the other: prefixes, and what comes behind a prefix.

    states     ids, int32 (n_tokens,), or hidden states, float32 (n_tokens, n_features)
    offsets    int32 (n_pieces + 1,)
    positions  int64 (n_tokens,) of each token in its row
    before     int32 (n_pieces, 2) the tokens of this run that stand before a piece; none where both are 0
    """

    states: Any
    offsets: Int32Array
    positions: Int64Array
    before: Int32Array

    @property
    def last_tokens(self) -> tuple[Int64Array, Int32Array]:
        """The last tokens of each piece, and where each piece's begin among them."""
        counts = np.minimum(np.diff(self.offsets), N_LAST)
        tokens = [np.arange(stop - n, stop) for stop, n in zip(self.offsets[1:], counts, strict=True)]
        return np.concatenate(tokens).astype(np.int64), _offsets(counts)

    @property
    def all_tokens(self) -> tuple[Int64Array, Int32Array]:
        """All tokens, and where each piece's begin."""
        return np.arange(self.offsets[-1], dtype=np.int64), self.offsets


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What a run through some segments gave: logits by exit, (n_pieces,), and what was asked to be kept."""

    logits: dict[int, Float32Array]
    hidden: OrtValue
    kept: tuple[OrtValue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Tokens of a row: its prefix, or the rest. `start` is its first position, `behind` the piece that precedes it."""

    states: Any
    start: int = 0
    behind: int | None = None


class OrtCausal:
    """A causal model on the CPU, cut behind the layers `exits`. Threads may share it."""

    def __init__(
        self,
        graphs: Sequence[Path],
        exits: Sequence[int],
        *,
        n_threads: int,
        is_prepared: bool,
        instruction_set: InstructionSet | None = None,
    ) -> None:
        n_narrow = n_narrow_lanes(n_threads, is_prepared=is_prepared)
        self.capacity = Capacity(layout="causal", n_threads=n_threads, n_narrow=n_narrow)
        self.exits = tuple(exits)
        self._ort = import_onnxruntime()

        def load(n: int) -> list[Any]:
            options = [session_options(n, is_prepared=is_prepared, instruction_set=instruction_set) for _ in graphs]
            return [open_session(graph, of_graph) for graph, of_graph in zip(graphs, options, strict=True)]

        self._wide, self._narrow = wide_and_narrow(load, self.capacity)
        self.no_prefix: tuple[OrtValue, ...] = tuple(self._ort_value(_empty_prefix(session)) for session in self._wide)
        self._lanes = CpuLanes(n_narrow, graphs[0].parent)

    def run(self, encoded: Encoded, prefixes: Prefixes, exits: Sequence[int]) -> Float32Array:
        """Return the logits at these exits, (n_exits, n_rows); no layer behind the deepest one is computed."""
        logits = np.empty((len(exits), encoded.n_rows), np.float32)
        for rows in self.blocks(prefixes):
            walk = Walk(self, encoded, prefixes, max(exits))
            planned = walk.plan(rows)
            walk.keep_prefixes(planned.runs)

            def score(run: Int64Array, sessions: Sequence[Any], walk: "Walk" = walk) -> None:
                found = walk.through(sessions, run, exits)
                logits[:, run] = [found[layer] for layer in exits]

            self.side_by_side(planned, score)
        return logits

    def blocks(self, prefixes: Prefixes) -> list[Int64Array]:
        """Divide rows into blocks whose prefixes fit in memory together; those without a prefix are in the first."""
        n_each = sum(int(np.prod(_prefix_shape(session))) for session in self._wide) * 4
        n_bytes = np.cumsum([len(ids) * n_each for ids in prefixes.ids])
        block_of_prefix = np.concatenate([n_bytes // _PREFIX_BYTES, [0]]).astype(np.int64)
        block_of_row = block_of_prefix[prefixes.of_row]
        return [np.flatnonzero(block_of_row == block) for block in np.unique(block_of_row)]

    def side_by_side(self, planned: Plan, work: Callable[[Int64Array, Sequence[Any]], None]) -> None:
        """Call work(rows, sessions) for each run of a plan, on as many threads as it is planned for."""
        self._lanes.run(planned, lambda rows: work(rows, self._wide), lambda rows: work(rows, self._narrow))

    def segments_to(self, layer: int) -> int:
        """Return how many segments lead to an exit."""
        return self.exits.index(layer) + 1

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
        """Run a batch through the segments first to stop - 1, each behind its part of a prefix.

        In the last one only what the logits need is computed, unless its hidden states are kept.
        """
        logits, kept, states = {}, [], batch.states
        for segment in range(first, stop):
            goes_on = segment < stop - 1 or keep_hidden
            tokens, offsets = batch.all_tokens if goes_on else batch.last_tokens
            wanted = {"logits": self.exits[segment] in exits, "hidden": goes_on, "kept": n_kept > 0}
            feed = {
                "input_ids" if segment == 0 else "states": states,
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
                logits[self.exits[segment]] = found["logits"].numpy()
            if "kept" in found:
                kept.append(found["kept"])
            states = found.get("hidden")
        return Passed(logits=logits, hidden=states, kept=tuple(kept))

    def keep(self, ids: Sequence[Int32Array], stop: int) -> list[tuple[OrtValue, ...]]:
        """Return the keys and values of prefixes, for each its part of each of the first segments."""
        kept: list[tuple[OrtValue, ...]] = [()] * len(ids)
        lengths = np.array([len(row) for row in ids], np.int64)

        def compute(rows: Int64Array, sessions: Sequence[Any]) -> None:
            batch = _batch([Piece(states=ids[row]) for row in rows])
            passed = self.through(sessions, batch, self.no_prefix, (), stop=stop, n_kept=int(batch.offsets[-1]))
            parts = [np.split(part.numpy(), batch.offsets[1:-1], axis=3) for part in passed.kept]
            for place, row in enumerate(rows):
                kept[row] = tuple(self._ort_value(np.ascontiguousarray(part[place])) for part in parts)

        self.side_by_side(plan(lengths, self.capacity), compute)
        return kept

    def close(self) -> None:
        """Release the threads, and the sessions with their memory."""
        self._lanes.close()
        with changing_mappings():
            self._wide, self._narrow, self.no_prefix = [], [], ()

    def __del__(self) -> None:
        with changing_mappings():
            self._wide, self._narrow, self.no_prefix = [], [], ()

    def _outputs(self, session: Any, feed: dict[str, Any], names: list[str]) -> dict[str, OrtValue]:
        values = {name: self._ort_value(x) if isinstance(x, np.ndarray) else x for name, x in feed.items()}
        # Something has to be asked for, even where only a prefix is passed on.
        names = names or ["logits"]
        return dict(zip(names, session.run_with_ort_values(names, values), strict=True))

    def _ort_value(self, array: Any) -> OrtValue:
        return self._ort.OrtValue.ortvalue_from_numpy(array)


class Walk:
    """Rows on their way through the segments, as deep as they will go."""

    def __init__(self, model: OrtCausal, encoded: Encoded, prefixes: Prefixes, deepest: int) -> None:
        self._model = model
        self._encoded = encoded
        self._prefixes = prefixes
        self._stop = model.segments_to(deepest)
        # Rows on the way: their hidden states behind the segments that they have passed.
        self._hidden: dict[int, Float32Array] = {}
        # The prefixes that were computed before their rows, by their numbers; any other goes with its rows.
        self._pasts: dict[int, tuple[OrtValue, ...]] = {}

    def keep_prefixes(self, runs: Sequence[Int64Array], *, least_runs: int = 2) -> None:
        """Compute the prefixes that are shared by so many runs."""
        numbers, n_runs = np.unique([self._prefixes.of_row[run[0]] for run in runs], return_counts=True)
        shared = [int(number) for number in numbers[n_runs >= least_runs] if number >= 0]
        kept = self._model.keep([self._prefixes.ids[number] for number in shared], self._stop)
        self._pasts |= dict(zip(shared, kept, strict=True))

    def plan(self, rows: Int64Array) -> Plan:
        """Plan the runs of rows; those of one run share a prefix, or none does. Returns row numbers."""
        of_row = self._prefixes.of_row[rows]
        own = self._encoded.lengths[rows] - np.where(of_row >= 0, self._prefixes.lengths[rows], 0)
        found = plan(own, self._model.capacity, of_row)
        return Plan(wide=tuple(rows[run] for run in found.wide), narrow=tuple(rows[run] for run in found.narrow))

    def through(self, sessions: Sequence[Any], rows: Int64Array, exits: Sequence[int]) -> dict[int, Float32Array]:
        """Run rows from the ids to the deepest exit; return the logits at each, (n_rows,)."""
        batch, ends = self._batch(rows)
        passed = self._model.through(sessions, batch, self._past(rows), exits, stop=self._stop)
        return {layer: logits[ends] for layer, logits in passed.logits.items()}

    def step(self, sessions: Sequence[Any], rows: Int64Array, segment: int, *, goes_on: bool) -> Float32Array:
        """Run rows through one segment, to which they have come, and return its logits, (n_rows,)."""
        (batch, ends), layer = self._batch(rows), self._model.exits[segment]
        passed = self._model.through(
            sessions, batch, self._past(rows), (layer,), first=segment, stop=segment + 1, keep_hidden=goes_on
        )
        if goes_on:
            parts = np.split(passed.hidden.numpy(), batch.offsets[1:][ends][:-1])
            self._hidden |= {int(row): part for row, part in zip(rows, parts, strict=True)}
        return passed.logits[layer][ends]

    def hold_only(self, rows: Int64Array) -> None:
        """Drop the hidden states of all rows but these: the others go no further."""
        self._hidden = {int(row): self._hidden[int(row)] for row in rows}

    def _batch(self, rows: Int64Array) -> tuple[Batch, list[int]]:
        """Return rows as pieces, and which piece each row ends with."""
        pieces: list[Piece] = []
        ends, place_of = [], {}
        for row in map(int, rows):
            number, n_prefix = int(self._prefixes.of_row[row]), int(self._prefixes.lengths[row])
            prefix, rest = self._states(row, number, n_prefix)
            if len(prefix) and (number < 0 or number not in place_of):
                place_of[number] = len(pieces)
                pieces.append(Piece(states=prefix))
            behind = place_of[number] if len(prefix) else None
            pieces.append(Piece(states=rest, start=n_prefix, behind=behind))
            ends.append(len(pieces) - 1)
        return _batch(pieces), ends

    def _states(self, row: int, number: int, n_prefix: int) -> tuple[Any, Any]:
        """Return a row's states as far as this walk computes them: those of its prefix, if it does, and of the rest."""
        if number in self._pasts:
            rest = self._hidden.get(row, self._encoded.row(row)[n_prefix:])
            return rest[:0], rest
        states = self._hidden.get(row, self._encoded.row(row))
        return states[:n_prefix], states[n_prefix:]

    def _past(self, rows: Int64Array) -> Sequence[OrtValue]:
        return self._pasts.get(int(self._prefixes.of_row[rows[0]]), self._model.no_prefix)


def progressively(model: OrtCausal, encoded: Encoded, prefixes: Prefixes, policy: Policy, top_n: int) -> Progress:
    """Run rows of one query as far as each has to go for the first `top_n` to be known."""
    walk = Walk(model, encoded, prefixes, policy.layers[-1])
    walk.keep_prefixes([np.arange(encoded.n_rows)], least_runs=1)

    def step(rows: Int64Array, exit_: int, goes_on: bool) -> Float32Array:
        scores = np.empty(encoded.n_rows, np.float32)

        def run(run: Int64Array, sessions: Sequence[Any]) -> None:
            scores[run] = walk.step(sessions, run, exit_, goes_on=goes_on)

        walk.hold_only(rows if exit_ else rows[:0])
        model.side_by_side(walk.plan(rows), run)
        return scores[rows]

    return progressive.run(_blocks(encoded), encoded.n_rows, top_n, policy, step)


def _blocks(encoded: Encoded) -> list[Int64Array]:
    """Divide rows into blocks whose hidden states may be in memory together."""
    block_of_row = encoded.offsets[:-1] // _HELD_TOKENS
    return [np.flatnonzero(block_of_row == block) for block in np.unique(block_of_row)]


def _batch(pieces: Sequence[Piece]) -> Batch:
    offsets = _offsets([len(piece.states) for piece in pieces])
    before = [(0, 0) if p.behind is None else (offsets[p.behind], offsets[p.behind + 1]) for p in pieces]
    return Batch(
        states=np.concatenate([piece.states for piece in pieces]),
        offsets=offsets,
        positions=np.concatenate([np.arange(p.start, p.start + len(p.states), dtype=np.int64) for p in pieces]),
        before=np.array(before, np.int32),
    )


def _offsets(lengths: Any) -> Int32Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _prefix_shape(session: Any) -> list[int]:
    """Return the shape of a prefix of one token: layers, keys and values, heads, tokens, features of a head."""
    (prefix,) = (node for node in session.get_inputs() if node.name == "prefix")
    return [n if isinstance(n, int) else 1 for n in prefix.shape]


def _empty_prefix(session: Any) -> Float32Array:
    shape = _prefix_shape(session)
    shape[3] = 0
    return np.zeros(shape, np.float32)
