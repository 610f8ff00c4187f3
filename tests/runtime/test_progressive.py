"""Stopping early: who goes on, who is checked, and that the answer is the full one where margins hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rankrt import InputError
from rankrt.arrays import Float32Array, Int64Array
from rankrt.artifact.manifest import Exit, Margins, Variant
from rankrt.llm.exits import Keep
from rankrt.llm.progressive import Policy, overtaken_gaps, run

LAYERS = (2, 4, 8)
scores_of_rows = arrays(np.float32, (3, 12), elements=st.integers(-20, 20).map(np.float32), unique=True)


def policy(margins: tuple[float, ...], rises: tuple[float, ...] | None = None) -> Policy:
    return Policy(layers=LAYERS, margins=margins, rises=rises)


@dataclass
class Known:
    """Scores that are known beforehand, (n_exits, n_rows), the blocks they come in, and what was asked for."""

    scores: Float32Array
    blocks: Sequence[Sequence[int]] = ()
    asked: list[tuple[list[int], int]] = field(default_factory=list)

    def __call__(self, rows: Int64Array, exits: Sequence[int], keep: Keep | None) -> Float32Array:
        if keep is None:
            self.asked.append((rows.tolist(), LAYERS.index(exits[-1])))
            return np.asarray(self.scores[LAYERS.index(exits[-1]), rows])
        for block in self.blocks or [rows.tolist()]:
            going = np.array(block)
            for exit_ in range(len(exits)):
                if len(going):
                    self.asked.append((going.tolist(), exit_))
                    going = keep(exit_, going, self.scores[exit_, going])
        return np.asarray(self.scores[-1])


def test_only_those_within_the_margin_of_the_bar_go_on():
    known = Known(np.array([[9, 5, 3, 0], [9, 5, 6, 0], [1, 2, 3, 4]], np.float32))
    found = run(known, np.ones(4, np.int64), 1, policy((5.0, 3.0)))
    assert known.asked == [([0, 1, 2, 3], 0), ([0, 1], 1), ([0], 2)]
    assert found.scores.tolist() == [1, 5, 3, 0]
    assert (found.exits.tolist(), found.n_rows, found.finished.tolist()) == ([2, 1, 0, 0], (4, 2, 1), [0])


def test_the_work_saved_counts_layers_and_tokens():
    known = Known(np.array([[9, 0], [9, 0], [9, 0]], np.float32))
    found = run(known, np.array([30, 10]), 1, policy((0.0, 0.0)))
    assert found.share_saved == pytest.approx(1 - (8 * 30 + 2 * 10) / (8 * 40))


def test_later_blocks_have_the_bar_of_the_earlier_ones():
    known = Known(np.array([[9, 8, 1, 2]] * 3, np.float32), blocks=[[0, 1], [2, 3]])
    run(known, np.ones(4, np.int64), 1, policy((2.0, 2.0)))
    assert known.asked[-1] == ([2, 3], 0)


def test_fewer_rows_than_asked_for_all_go_to_the_end():
    known = Known(np.zeros((3, 2), np.float32))
    assert run(known, np.ones(2, np.int64), 5, policy((0.0, 0.0))).exits.tolist() == [2, 2]


def test_rows_that_stopped_and_may_be_above_the_last_hit_are_run_to_the_end():
    known = Known(np.array([[5, 1, -9], [5, 1, -9], [3, 9, 0]], np.float32))
    found = run(known, np.ones(3, np.int64), 1, policy((1.0, 1.0), rises=(8.0, 8.0)))
    assert (found.n_checked, found.scores.tolist()) == (1, [3, 9, -9])
    assert known.asked[-1] == ([1], 2)


@given(scores=scores_of_rows, top_n=st.integers(1, 6))
def test_margins_as_large_as_the_largest_gap_lose_nobody(scores: Float32Array, top_n: int):
    largest = tuple(float(overtaken_gaps(here, scores[-1]).max()) for here in scores[:-1])
    found = run(Known(scores), np.ones(12, np.int64), top_n, policy(largest))
    best = set(np.argsort(-scores[-1])[:top_n].tolist())
    assert best <= set(np.flatnonzero(found.exits == 2).tolist())


@given(scores=scores_of_rows, top_n=st.integers(1, 6), margin=st.floats(0, 5))
def test_checked_to_the_largest_rise_the_answer_is_the_full_one(scores: Float32Array, top_n: int, margin: float):
    rises = tuple(float((scores[-1] - here).max()) for here in scores[:-1])
    found = run(Known(scores), np.ones(12, np.int64), top_n, policy((margin, margin), rises))
    best = np.argsort(-scores[-1])[:top_n]
    assert np.argsort(-np.where(found.exits == 2, found.scores, -np.inf))[:top_n].tolist() == best.tolist()


def test_a_gap_is_how_far_the_later_winner_is_behind():
    assert sorted(overtaken_gaps(np.array([1, 4, 2]), np.array([3, 2, 1])).tolist()) == [0, 1, 3]


def variant(margins: Margins | None) -> Variant:
    exits = tuple(Exit(layer=n, graph=f"{n}.onnx", verification=None, margins=margins) for n in LAYERS)
    return Variant(
        target="cpu",
        precision="fp32",
        layout="causal",
        graph="2.onnx",
        data=(),
        verification=None,
        quantization=None,
        exits=exits,
    )


def test_a_share_between_two_that_are_known_takes_the_larger_margin():
    known = Margins(shares=(0.9, 0.99, 1.0), gaps=(1.0, 2.0, 3.0), rise=4.0)
    assert Policy.of(variant(known), 8, True).margins == (2.0, 2.0)
    assert Policy.of(variant(known), 8, 0.95).margins == (2.0, 2.0)
    exact = Policy.of(variant(known), 4, "exact")
    assert (exact.layers, exact.margins, exact.rises) == ((2, 4), (3.0,), (4.0,))


@pytest.mark.parametrize(
    ("deepest", "progressive", "margins", "message"),
    [
        (8, True, None, "was not verified, so its margins are not known"),
        (2, True, Margins(shares=(1.0,), gaps=(1.0,), rise=1.0), "with an exit before the last"),
        (8, 1.5, Margins(shares=(1.0,), gaps=(1.0,), rise=1.0), "expected True, 'exact', or a share between 0 and 1"),
    ],
)
def test_what_cannot_be_progressive_says_why(deepest: int, progressive: float, margins: Margins | None, message: str):
    with pytest.raises(InputError, match=message):
        Policy.of(variant(margins), deepest, progressive)
