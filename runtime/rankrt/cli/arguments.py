"""How arguments are read: options by their whole names, lists that leave the rest alone, suggestions for typos.

A layer over argparse for all commands; knows none of them.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

_Options = argparse.Namespace


class Parser(argparse.ArgumentParser):
    """Reads the arguments of a command, or of all; a mistake ends with a sentence and the exit status 2.

    argparse alone takes `--max` for `--max-length`, lets `--precision fp32 MODEL` swallow the model, does not take
    `--query -x`, and suggests nothing.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    @property
    def spelling(self) -> dict[str, str]:
        """The options' names as they are typed, by the names under which their values are kept."""
        return {action.dest: action.option_strings[-1] for action in self._actions if action.option_strings}

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: _Options | None = None
    ) -> tuple[_Options, list[str]]:
        """Parse all arguments; none is left over."""
        spelled_out = self._spelled_out(list(sys.argv[1:] if args is None else args))
        found, left = super().parse_known_args(spelled_out, namespace)
        if left:
            known = [choice for action in self._actions for choice in _choices(action)]
            self.error(f"unexpected argument {left[0]!r}{_suggested(left[0], known)}")
        return found, []

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with status 2. The usage, some ten lines, would hide it."""
        self.exit(2, f"{self.prog}: error: {message}\nRun `{self.prog} --help` for what it takes.\n")

    def _spelled_out(self, arguments: list[str]) -> list[str]:
        """Return arguments with the options first, each with its value as in --precision=fp32,int8.

        argparse matches positional arguments with those of the first stretch that has any, and knows no later ones.
        """
        options: list[str] = []
        positional: list[str] = []
        while arguments:
            argument = arguments.pop(0)
            if argument == "--":
                return [*options, argument, *positional, *arguments]
            if not _is_option(argument) and self._subparsers is not None:
                return [*options, argument, *arguments]  # what follows a command is for its own parser
            if _is_option(argument):
                options.append(self._with_value(argument, arguments))
            else:
                positional.append(argument)
        return [*options, *positional]

    def _with_value(self, argument: str, following: list[str]) -> str:
        """Return an option together with the value that follows it, which is taken away from there."""
        name, is_given, _ = argument.partition("=")
        if (action := self._option_string_actions.get(name)) is None:
            known = [name for name in self._option_string_actions if name.startswith("--")]
            self.error(f"there is no option {name}{_suggested(name, known)}")
        if is_given or action.nargs == 0:
            return argument
        if action.nargs == "?":
            is_value = bool(following) and following[0] in (action.choices or ())
            return f"{name}={following.pop(0) if is_value else action.const}"
        if not following or following[0].startswith("--"):
            self.error(f"{name} needs a value; one that begins with two dashes is given as {name}=VALUE")
        values = [following.pop(0)]
        while isinstance(action, Several) and following and action.takes(following[0]):
            values.append(following.pop(0))
        return f"{name}={','.join(values)}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, not_one_of(str(value), action.choices))


class Several(argparse.Action):
    """An option with several values: in one argument with commas, in arguments that follow, or given again.

    Of the arguments that follow it takes those that can be values, so that it may stand before a positional one.
    """

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        *,
        values: Sequence[str] = (),
        convert: Callable[[str], Any] = str,
        **options: Any,
    ) -> None:
        super().__init__(option_strings, dest, **options)
        self.values = values
        self._convert = convert

    def takes(self, argument: str) -> bool:
        """Tell whether an argument can be a list of values."""
        try:
            self._converted(argument)
        except (ValueError, argparse.ArgumentTypeError):
            return False
        return True

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: _Options, values: Any, option_string: str | None = None
    ) -> None:
        """Add to the values what an argument holds; the default is dropped at the first."""
        try:
            found = self._converted(values)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise argparse.ArgumentError(self, str(error)) from error
        before = getattr(namespace, self.dest)
        before = [] if before is self.default else before
        setattr(namespace, self.dest, [*before, *found])

    def _converted(self, argument: str) -> list[Any]:
        values = argument.split(",")
        for value in values:
            if self.values and value not in self.values:
                raise ValueError(not_one_of(value, self.values))
        return [self._convert(value) for value in values]


def whole(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """Return what reads a whole number of at least `least`, and at most `most`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        return int(_within(number, least, most))

    return read


def real(least: float = -math.inf, most: float | None = None) -> Callable[[str], float]:
    """Return what reads a finite number of at least `least`, and at most `most`."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not math.isfinite(number):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
        return _within(number, least, most)

    return read


def not_one_of(value: str, choices: Iterable[Any]) -> str:
    """Say that a value is not one of the choices, and which of them is meant, if one is near."""
    known = [str(choice) for choice in choices]
    return f"{value!r} is not one of {', '.join(known)}{_suggested(value, known)}"


def _within(number: float, least: float, most: float | None) -> float:
    if number < least:
        raise argparse.ArgumentTypeError(f"{number} is less than {least}")
    if most is not None and number > most:
        raise argparse.ArgumentTypeError(f"{number} is more than {most}")
    return number


def _is_option(argument: str) -> bool:
    """Tell whether an argument is an option: not a number below 0, and not "-", which is standard input."""
    try:
        float(argument)
    except ValueError:
        return argument.startswith("-") and argument != "-"
    return False


def _choices(action: argparse.Action) -> list[str]:
    values = action.values if isinstance(action, Several) else action.choices
    return [str(value) for value in values or ()]


def _suggested(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
