"""The options of loading a model, and what any option may be: a refusal names the option and what was expected."""

import difflib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, TypeGuard

import numpy as np

from rankrt.artifact.precisions import ASKED_SETS, PRECISIONS, AskedSet, Precision
from rankrt.errors import InputError
from rankrt.host.device import AUTO, Device

# The target that an option is for, under this name in its field's metadata; on others it would change nothing.
_TARGET = "target"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Where and how a model is loaded: what `Reranker.load`, the commands and the server's workers have in common.

    `Reranker.load` says what each of them means; the commands' help says it too.
    """

    device: str = AUTO
    precision: Precision | Literal["auto"] = "auto"
    instruction_set: AskedSet | None = field(default=None, metadata={_TARGET: "cpu"})
    n_threads: int | None = field(default=None, metadata={_TARGET: "cpu"})
    gpu_memory_gb: float | None = field(default=None, metadata={_TARGET: "cuda"})
    revision: str | None = None
    cache_dir: str | Path | None = None
    prepare: bool = True

    def __post_init__(self) -> None:
        """Refuse what no host could honour."""
        check_text("device", self.device)
        check_choice("precision", self.precision, ("auto", *PRECISIONS))
        check_choice("instruction_set", self.instruction_set, ASKED_SETS, none_is="the one for this processor")
        check_whole("n_threads", self.n_threads, least=1, none_is="all usable cores")
        check_positive("gpu_memory_gb", self.gpu_memory_gb, none_is="as much as is needed")
        check_text("revision", self.revision, none_is="the newest")
        check_flag("prepare", self.prepare)
        if self.cache_dir is not None and not isinstance(self.cache_dir, str | os.PathLike):
            raise InputError(f"cache_dir={self.cache_dir!r:.80}, expected a folder (or None for huggingface_hub's own)")
        if (asked := Device.parse(self.device)) is not None:
            self.check_device(asked)

    def check_device(self, device: Device) -> None:
        """Raise InputError for an option that is given and that would change nothing on the device that was chosen."""
        taken = f", which took {str(device)!r} here" if self.device == AUTO else ""
        for option in fields(self):
            target = option.metadata.get(_TARGET, device.target)
            if target != device.target and getattr(self, option.name) is not None:
                raise InputError(
                    f"{option.name} is for {_NAMES[target]} only, not for device={self.device!r}{taken}; leave it out"
                )


_NAMES = {"cpu": "the CPU", "cuda": "CUDA"}


def check_whole(name: str, value: object, *, least: int | None = None, none_is: str | None = None) -> None:
    """Raise InputError unless an option is a whole number of at least `least`; or None, if that stands for something.

    numpy's whole numbers are some; True and 2.0 are none.
    """
    if value is None and none_is is not None:
        return
    expected = "a whole number" if least is None else f"a whole number of at least {least}"
    if not is_whole(value) or (least is not None and value < least):
        raise InputError(f"{name}={_shown(value)}, expected {expected}{_or_none(none_is)}")


def check_positive(name: str, value: object, *, none_is: str) -> None:
    """Raise InputError unless an option is a finite number above 0; or None, which stands for something."""
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise InputError(f"{name}={_shown(value)}, expected more than 0{_or_none(none_is)}")


def check_number(name: str, value: object, *, none_is: str) -> None:
    """Raise InputError unless an option is a finite number; or None, which stands for something."""
    if value is None:
        return
    if not isinstance(value, int | float | np.number) or isinstance(value, bool) or not np.isfinite(float(value)):
        raise InputError(f"{name}={_shown(value)}, expected a finite number{_or_none(none_is)}")


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
            f"{suggestion(value, choices, shown=repr)}"
        )


def check_text(name: str, value: object, *, none_is: str | None = None) -> None:
    """Raise InputError unless an option is text; or None, if that stands for something."""
    if not isinstance(value, str) and (value is not None or none_is is None):
        raise InputError(f"{name}={_shown(value)}, expected text{_or_none(none_is)}")


def check_names(function: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise TypeError, as Python does, for an option that a function does not have; name the nearest that it has."""
    for name in given:
        if name not in known:
            meant = suggestion(name, known, shown=repr) or f"; it has {', '.join(known)}"
            raise TypeError(f"{function} has no option {name!r}{meant}")


def suggestion(word: object, known: Iterable[str], *, shown: Callable[[str], str] = str) -> str:
    """Return the end of a message that asks whether a known word was meant, the nearest; nothing if none is near."""
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {shown(near[0])}?" if near else ""


def is_whole(value: object) -> TypeGuard[int]:
    """Tell whether a value is a whole number."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _or_none(none_is: str | None) -> str:
    return "" if none_is is None else f" (or None for {none_is})"


def _shown(value: object) -> str:
    return f"{value!r:.80}"
