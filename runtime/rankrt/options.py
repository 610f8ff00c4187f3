"""What an option may be: a refusal is one sentence that names the option and what was expected. Knows no model."""

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import TypeGuard

import numpy as np

from rankrt.errors import InputError


def check_whole(name: str, value: object, *, least: int | None = None, none_is: str | None = None) -> None:
    """Raise InputError unless an option is a whole number of at least `least`; or None, if that stands for something.

    numpy's whole numbers are some; True and 2.0 are none.
    """
    if value is None and none_is is not None:
        return
    expected = "a whole number" if least is None else f"a whole number of at least {least}"
    if not is_whole(value) or (least is not None and value < least):
        raise InputError(f"{name}={_shown(value)}, expected {expected}{_or_none(none_is)}")


def check_flag(name: str, value: object) -> None:
    """Raise InputError unless an option is True or False, numpy's among them."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name}={_shown(value)}, expected True or False")


def check_choice(name: str, value: object, choices: Collection[str], *, none_is: str | None = None) -> None:
    """Raise InputError unless an option is one of some words; or None, if that stands for something."""
    if value is None and none_is is not None:
        return
    if not isinstance(value, str) or value not in choices:
        raise InputError(
            f"{name}={_shown(value)}, expected one of {', '.join(map(repr, choices))}{_or_none(none_is)}"
            f"{_near(value, choices)}"
        )


def check_text(name: str, value: object, *, none_is: str | None = None) -> None:
    """Raise InputError unless an option is text; or None, if that stands for something."""
    if not isinstance(value, str) and (value is not None or none_is is None):
        raise InputError(f"{name}={_shown(value)}, expected text{_or_none(none_is)}")


def check_names(function: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise TypeError, as Python does, for an option that a function does not have; name the nearest that it has."""
    for name in given:
        if name not in known:
            raise TypeError(f"{function} has no option {name!r}{_near(name, known) or '; it has ' + ', '.join(known)}")


def is_whole(value: object) -> TypeGuard[int]:
    """Tell whether a value is a whole number."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _near(value: object, choices: Collection[str]) -> str:
    near = difflib.get_close_matches(str(value), choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _or_none(none_is: str | None) -> str:
    return "" if none_is is None else f" (or None for {none_is})"


def _shown(value: object) -> str:
    return f"{value!r:.80}"
