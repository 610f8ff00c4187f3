"""Texts and pairs from containers: lists, tuples, generators, numpy's arrays, pandas' columns and frames.

Refuses containers without an order, and values that are not text, before work begins. Knows pandas and its like by
their methods only.
"""

from collections.abc import ItemsView, Iterable, KeysView, Mapping, Set
from typing import Any

import numpy as np

from rankrt.errors import InputError
from rankrt.text.pairs import Pair


def documents_of(given: Iterable[str]) -> list[str]:
    """Return the texts of a container. Raises InputError unless it holds texts in an order."""
    if _is_frame(given):
        raise InputError(f'documents is a {_kind(given)}; pass one column of it: documents["text"]')
    documents = _list_of(given, "documents", "a list of texts")
    for i, document in enumerate(documents):
        if not isinstance(document, str):
            raise InputError(f"document {i} is {_kind(document)}, not str")
    return documents


def pairs_of(given: Iterable[Any]) -> list[Pair]:
    """Return the pairs of a container, or the rows of an array or a frame. Raises InputError unless these are pairs."""
    if _is_frame(given):
        given = given.to_numpy()  # type: ignore[attr-defined]
        if given.shape[1] != 2:  # type: ignore[attr-defined]
            raise InputError(
                f"pairs is a frame of {given.shape[1]} columns;"  # type: ignore[attr-defined]
                ' pass the two with queries and passages: pairs[["query", "passage"]]'
            )
    return [_pair(pair, i) for i, pair in enumerate(_list_of(given, "pairs", "a list of pairs (query, passage)"))]


def is_one_pair(given: Any) -> bool:
    """Tell whether this is one pair, two texts, and not a container of pairs."""
    listed = given.tolist() if _is_column(given) else given
    return isinstance(listed, list | tuple) and len(listed) > 0 and isinstance(listed[0], str)


def _pair(given: Any, number: int) -> Pair:
    pair = given.tolist() if _is_column(given) else given
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        hint = "; one pair alone is [(query, passage)]" if isinstance(given, str) else ""
        raise InputError(f"expected pairs (query, passage), got {pair!r:.80} as pair {number}{hint}")
    for role, text in zip(("query", "passage"), pair, strict=True):
        if not isinstance(text, str):
            raise InputError(f"the {role} of pair {number} is {_kind(text)}, not str")
    return pair if type(pair) is tuple else (pair[0], pair[1])


def _list_of(given: Any, name: str, expected: str) -> list[Any]:
    if isinstance(given, str | bytes | bytearray):
        raise InputError(f"{name} is one {_kind(given)}, expected {expected}")
    if isinstance(given, Mapping):
        raise InputError(f"{name} is a {_kind(given)}, expected {expected}; pass list({name}.values())")
    if isinstance(given, Set) and not isinstance(given, KeysView | ItemsView):
        raise InputError(f"{name} is a {_kind(given)}, which has no order; pass a list")
    if _is_column(given):
        return list(given.tolist())
    if getattr(given, "ndim", 1) == 0 or not hasattr(type(given), "__iter__"):
        raise InputError(f"{name} is {_kind(given)}, expected {expected}")
    return list(given)


def _is_column(given: Any) -> bool:
    """Tell whether this is an array or a column, whose `tolist` gives Python's own values."""
    if isinstance(given, np.ndarray):
        return given.ndim > 0
    return hasattr(given, "tolist") and hasattr(given, "index")


def _is_frame(given: Any) -> bool:
    return hasattr(given, "columns") and hasattr(given, "to_numpy")


def _kind(given: object) -> str:
    return type(given).__name__
