"""What click lacks: options in groups, options with several values, and mistakes as sentences. Knows no command.

click alone takes `--query --top-n` for a query, does not read `--precision fp32 int8 MODEL`, and lets "nan" pass as a
number within bounds.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click
from click.shell_completion import CompletionItem

from rankrt.errors import RankrtError
from rankrt.options import suggestion

_AnyCommand = TypeVar("_AnyCommand", bound=Callable[..., Any] | click.Command)

# In the help, names that are longer have their text on the next line.
_NAMES_WIDTH = 24

# How the words of an argument become a value. click's own class takes parameters since 8.4.
if TYPE_CHECKING:
    Kind: TypeAlias = click.ParamType[Any, Any]
else:
    Kind = click.ParamType


class Whole(Kind):
    """A whole number of at least `least`, and at most `most`."""

    name = "number"

    def __init__(self, least: int = 1, most: int | None = None) -> None:
        self._least = least
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the number. Raises BadParameter."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number", param, ctx)
        if number < self._least:
            self.fail(f"{number} is less than {self._least}", param, ctx)
        if self._most is not None and number > self._most:
            self.fail(f"{number} is more than {self._most}", param, ctx)
        return number


class Real(Kind):
    """A finite number of at least `least` and at most `most`; with `above`, of more than that."""

    name = "number"

    def __init__(self, least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf) -> None:
        self._least = least
        self._most = most
        self._above = above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the number. Raises BadParameter."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        if number < self._least:
            self.fail(f"{number} is less than {self._least}", param, ctx)
        if number > self._most:
            self.fail(f"{number} is more than {self._most}", param, ctx)
        if number <= self._above:
            self.fail(f"{value} is not more than {self._above}", param, ctx)
        return number


class Megabytes(Whole):
    """Bytes, written as a whole number of MB."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the number. Raises BadParameter."""
        return super().convert(value, param, ctx) << 20


class Choice(Kind):
    """One of some words; a typo is answered with the nearest."""

    name = "choice"

    def __init__(self, choices: Iterable[str]) -> None:
        self.choices = tuple(choices)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word, or say which there are."""
        if value not in self.choices:
            self.fail(not_one_of(str(value), self.choices), param, ctx)
        return str(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the words for the help."""
        return f"[{'|'.join(self.choices)}]"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the words that begin so."""
        return [CompletionItem(choice) for choice in self.choices if choice.startswith(incomplete)]


class Several(Kind):
    """Values with commas between them."""

    name = "list"

    def __init__(self, each: Kind) -> None:
        self.each = each

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """Read each value."""
        return [self.each.convert(part, param, ctx) for part in str(value).split(",")]

    def takes(self, argument: str) -> bool:
        """Tell whether an argument can be a list of values."""
        try:
            self.convert(argument, None, None)
        except click.BadParameter:
            return False
        return True

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return how the last value may end."""
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{item.value}") for item in self.each.shell_complete(ctx, param, last)]


class Argument(click.Argument):
    """A positional argument with a line in the help."""

    group = "Arguments"

    def __init__(self, names: Sequence[str], *, help: str, **attributes: Any) -> None:
        super().__init__(names, **attributes)
        self.help = help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Return the argument's line in the help."""
        return self.human_readable_name, self.help or ""


class Option(click.Option):
    """An option with the title of its group in the help.

    implied   its value where the next argument cannot be one
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        help: str,
        group: str = "Options",
        show_default: bool | str = True,
        implied: str | None = None,
        **attributes: Any,
    ) -> None:
        if isinstance(show_default, str):  # click would put parentheses around it
            help, show_default = f"{help}  [default: {show_default}]", False
        super().__init__(names, help=help, show_default=show_default, **attributes)
        self.group = group
        self.implied = implied

    @property
    def spelling(self) -> str:
        """The option as it is typed."""
        return max(self.opts, key=len)

    def joined(self, ctx: click.Context, following: list[str]) -> str:
        """Take the option's value from the arguments that follow; return both as in --precision=fp32,int8."""
        if self.implied is not None:
            is_value = isinstance(self.type, Choice) and following[:1] and following[0] in self.type.choices
            return f"{self.spelling}={following.pop(0) if is_value else self.implied}"
        if not following or following[0].startswith("--"):
            raise click.UsageError(
                f"{self.spelling} needs a value; one that begins with two dashes is given as {self.spelling}=VALUE",
                ctx,
            )
        values = [following.pop(0)]
        while isinstance(self.type, Several) and following and self.type.takes(following[0]):
            values.append(following.pop(0))
        return f"{self.spelling}={','.join(values)}"


argument = partial(click.argument, cls=Argument)
option = partial(click.option, cls=Option)


def file_argument(name: str, *, help: str, **attributes: Any) -> Callable[[_AnyCommand], _AnyCommand]:
    """Declare a positional argument that shells complete as a file's name."""
    return argument(name, help=help, shell_complete=_complete_file, **attributes)


def file_option(*names: str, **attributes: Any) -> Callable[[_AnyCommand], _AnyCommand]:
    """Declare an option that shells complete as a file's name."""
    return option(*names, shell_complete=_complete_file, **{"metavar": "FILE", **attributes})


def list_option(*names: str, each: Kind, **attributes: Any) -> Callable[[_AnyCommand], _AnyCommand]:
    """Declare an option with several values: in arguments that follow, in one with commas, or given again.

    Of the arguments that follow it takes those that can be values, so that it may stand before a positional one.
    """
    return option(*names, type=Several(each), multiple=True, callback=_flat, **attributes)


class Command(click.Command):
    """A command whose options have groups, and whose mistakes and errors name options as they are typed."""

    allow_extra_args = True  # they are refused here, with a suggestion

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the whole help for the list of commands, where click would cut it."""
        return cleandoc(self.help or "")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse all arguments; none is left over."""
        left = super().parse_args(ctx, args if ctx.resilient_parsing else self._with_joined_values(ctx, args))
        if left and not ctx.resilient_parsing:
            known = [choice for param in self.get_params(ctx) for choice in _choices(param.type)]
            raise click.UsageError(f"unexpected argument {left[0]!r}{suggestion(left[0], known)}", ctx)
        return left

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. An error of the library names its parameters as the options that stand for them."""
        try:
            return super().invoke(ctx)
        except RankrtError as error:
            spelling = {param.name: param.spelling for param in self.params if isinstance(param, Option) and param.name}
            error.args = (in_words_of_options(str(error), spelling), *error.args[1:])
            raise

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write nothing: arguments are a group of their own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments and the options, group by group, their texts one below the other."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(param, "group", "Options"), []).append(record)
        width = min(_NAMES_WIDTH, max(len(name) for records in groups.values() for name, _ in records))
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in records], col_max=_NAMES_WIDTH)

    def _with_joined_values(self, ctx: click.Context, arguments: Sequence[str]) -> list[str]:
        options = {name: param for param in self.params if isinstance(param, Option) for name in param.opts}
        found, following = list[str](), list(arguments)
        while following:
            argument = following.pop(0)
            if argument == "--":
                return [*found, argument, *following]
            option = options.get(argument)
            found.append(argument if option is None or option.is_flag else option.joined(ctx, following))
        return found


class Group(click.Group):
    """A command of commands; a typo is answered with the nearest."""

    command_class = Command

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **{"no_args_is_help": False, "subcommand_metavar": "COMMAND ...", **attributes})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options of the group; one of its commands has to follow."""
        if not args and not ctx.resilient_parsing:
            raise click.UsageError(f"a command is missing; choose one of {', '.join(self.list_commands(ctx))}", ctx)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names as they were declared."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called."""
        if not ctx.resilient_parsing and args[0] not in self.commands:
            raise click.UsageError(not_one_of(args[0], self.commands), ctx)
        return super().resolve_command(ctx, args)


def sentence(error: click.UsageError) -> str:
    """Say what is wrong with the arguments."""
    match error:
        case click.NoSuchOption():
            return f"there is no option {error.option_name}{suggestion(error.option_name, error.possibilities or ())}"
        case click.MissingParameter() if error.param is not None:
            return f"{_spelled(error.param)} is missing"
        case click.BadParameter() if error.param is not None:
            return f"{_spelled(error.param)}: {error.message}"
        case click.BadOptionUsage():
            return f"{error.option_name} does not take a value"
        case _:
            return error.message


def in_words_of_options(message: str, spelling: Mapping[str, str]) -> str:
    """Return a message of the library with its parameters as the options that are typed.

    `spelling` has the options by the parameters' names. Of names that are English words only name=value is replaced.
    """
    for name, option in spelling.items():
        message = re.sub(rf"\b{name}=(['\"]?)([^\s'\",;)]+)\1", rf"{option} \2", message)
        if "_" in name:
            message = re.sub(rf"(?<![\w/.-]){name}(?![\w/.])", option, message)
    return re.sub(r"\(or None (for [^)]*)\)", r"(or leave it out \1)", message)


def not_one_of(value: str, choices: Iterable[str]) -> str:
    """Say that a value is not one of the choices, and which of them is meant, if one is near."""
    known = [str(choice) for choice in choices]
    return f"{value!r} is not one of {', '.join(known)}{suggestion(value, known)}"


def _spelled(param: click.Parameter) -> str:
    return param.spelling if isinstance(param, Option) else param.human_readable_name.rstrip(".")


def _choices(kind: Kind) -> list[str]:
    kind = kind.each if isinstance(kind, Several) else kind
    return list(kind.choices) if isinstance(kind, Choice) else []


def _flat(ctx: click.Context, param: click.Parameter, value: Sequence[Sequence[Any]]) -> list[Any] | None:
    return [one for several in value for one in several] or None


def _complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]
