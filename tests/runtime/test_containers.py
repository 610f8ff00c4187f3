"""What texts and pairs may come in: whatever people hold them in, and what is refused before anything is scored."""

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rankrt import InputError, Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.compat import FlagReranker

TEXTS = ["one", "three", "two"]
PAIRS = [("one", "two"), ("one", "three"), ("zero", "four")]
SCORES = [3.0, 4.0, 4.0]
DOCUMENTS: dict[str, Callable[[], Any]] = {
    "list": lambda: TEXTS,
    "tuple": lambda: tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "deque": lambda: deque(TEXTS),
    "values of a dict": lambda: dict(enumerate(TEXTS)).values(),
    "keys of a dict": lambda: dict.fromkeys(TEXTS).keys(),
    "array of str": lambda: np.array(TEXTS),
    "array of objects": lambda: np.array(TEXTS, object),
    "pandas column": lambda: _pandas().DataFrame({"text": TEXTS})["text"],
    "pandas column, other labels": lambda: _pandas().Series(TEXTS, index=[7, 5, 5]),
    "pandas index": lambda: _pandas().Index(TEXTS),
}
CONTAINERS_OF_PAIRS: dict[str, Callable[[], Any]] = {
    "list of tuples": lambda: PAIRS,
    "list of lists": lambda: [list(pair) for pair in PAIRS],
    "tuple of tuples": lambda: tuple(PAIRS),
    "generator": lambda: (pair for pair in PAIRS),
    "zip": lambda: zip(*zip(*PAIRS, strict=True), strict=True),
    "array of str": lambda: np.array(PAIRS),
    "array of objects": lambda: np.array(PAIRS, object),
    "list of rows of an array": lambda: list(np.array(PAIRS, object)),
    "pandas frame": lambda: _pandas().DataFrame(PAIRS, columns=["query", "passage"]),
    "pandas frame, other labels": lambda: _pandas().DataFrame(PAIRS, index=[9, 9, 4]),
    "pandas rows": lambda: [row for _, row in _pandas().DataFrame(PAIRS, columns=["query", "passage"]).iterrows()],
    "pandas tuples": lambda: _pandas().DataFrame(PAIRS, columns=["query", "passage"]).itertuples(index=False),
    "pandas column of pairs": lambda: _pandas().Series(PAIRS, index=[3, 1, 2]),
}


@pytest.fixture
def flag(artifact: Artifact) -> FlagReranker:
    return FlagReranker(str(artifact.folder), max_length=64)


@pytest.mark.parametrize("given", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_documents_come_in_any_container_that_has_an_order(reranker: Reranker, given: Callable[[], Any]):
    hits = reranker.rank("zero", given()).hits
    assert [(hit.index, hit.document) for hit in hits] == [(1, "three"), (2, "two"), (0, "one")]
    assert {type(hit.document) for hit in hits} == {str}


@pytest.mark.parametrize("given", CONTAINERS_OF_PAIRS.values(), ids=CONTAINERS_OF_PAIRS.keys())
def test_pairs_come_in_any_container_that_has_an_order(
    reranker: Reranker, flag: FlagReranker, given: Callable[[], Any]
):
    assert reranker.score(given()).tolist() == SCORES
    assert flag.compute_score(given()) == SCORES


@pytest.mark.parametrize(
    "one",
    [("one", "two"), ["one", "two"], np.array(["one", "two"]), np.array(["one", "two"], object)],
    ids=["tuple", "list", "array of str", "array of objects"],
)
def test_flagembedding_s_interface_takes_one_pair_alone(flag: FlagReranker, one: Any):
    assert flag.compute_score(one) == [3.0]


def test_flagembedding_s_interface_takes_one_row_of_a_frame(flag: FlagReranker):
    assert flag.compute_score(_pandas().DataFrame(PAIRS, columns=["query", "passage"]).iloc[0]) == [3.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"id1": "one"}, r"documents is a dict, expected a list of texts; pass list\(documents.values\(\)\)"),
        (OrderedDict(a="one"), "documents is a OrderedDict, expected a list of texts"),
        ({"one", "two"}, "documents is a set, which has no order; pass a list"),
        (frozenset({"one"}), "documents is a frozenset, which has no order"),
        ("one", "documents is one str, expected a list of texts"),
        (b"one", "documents is one bytes, expected a list of texts"),
        (bytearray(b"one"), "documents is one bytearray, expected a list of texts"),
        (None, "documents is NoneType, expected a list of texts"),
        (3, "documents is int, expected a list of texts"),
        (np.array("one"), "documents is ndarray, expected a list of texts"),
        (np.array([["one", "two"]]), "document 0 is list, not str"),
        (["one", None], "document 1 is NoneType, not str"),
        (["one", float("nan")], "document 1 is float, not str"),
        ([b"one"], "document 0 is bytes, not str"),
        (["one"] * 5000 + [3], "document 5000 is int, not str"),
    ],
)
def test_documents_without_an_order_or_without_text_are_refused(reranker: Reranker, given: Any, message: str):
    with pytest.raises(InputError, match=message):
        reranker.rank("zero", given)


def test_a_frame_of_documents_is_asked_for_its_column(reranker: Reranker):
    with pytest.raises(InputError, match=r'documents is a DataFrame; pass one column of it: documents\["text"\]'):
        reranker.rank("zero", _pandas().DataFrame({"text": TEXTS}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"one": "two"}, "pairs is a dict, expected a list of pairs"),
        ({("one", "two")}, "pairs is a set, which has no order"),
        ("one", "pairs is one str, expected a list of pairs"),
        (None, "pairs is NoneType, expected a list of pairs"),
        ([{"query": "one", "passage": "two"}], r"expected pairs \(query, passage\), got {'query': 'one'.* as pair 0"),
        ([("one", "two"), ("one",)], r"expected pairs \(query, passage\), got \('one',\) as pair 1"),
        ([{"one", "two"}], r"expected pairs \(query, passage\), got"),
        ([("one", None)], "the passage of pair 0 is NoneType, not str"),
        ([("one", "two")] * 5000 + [(1, "two")], "the query of pair 5000 is int, not str"),
        (np.zeros((2, 2)), "the query of pair 0 is float, not str"),
        (np.array([["one", "two", "three"]]), r"expected pairs \(query, passage\), got \['one'"),
    ],
)
def test_what_holds_no_pairs_is_refused_in_every_interface(
    reranker: Reranker, flag: FlagReranker, given: Any, message: str
):
    with pytest.raises(InputError, match=message):
        reranker.score(given)
    with pytest.raises(InputError, match=message):
        flag.compute_score(given)


def test_one_pair_is_no_container_of_pairs_in_the_library(reranker: Reranker):
    with pytest.raises(InputError, match=r"got 'one' as pair 0; one pair alone is \[\(query, passage\)\]"):
        reranker.score(("one", "two"))  # type: ignore[arg-type]


def test_a_frame_has_the_two_columns_of_a_pair(reranker: Reranker):
    frame = _pandas().DataFrame([("one", "two", 1)], columns=["query", "passage", "label"])
    with pytest.raises(InputError, match=r'pairs is a frame of 3 columns; pass .*: pairs\[\["query", "passage"\]\]'):
        reranker.score(frame)
    assert reranker.score(frame[["query", "passage"]]).tolist() == [3.0]


def _pandas() -> Any:
    return pytest.importorskip("pandas", reason="pandas is not installed")
