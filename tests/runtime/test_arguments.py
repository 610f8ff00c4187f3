"""How arguments are read: whole names, lists that leave the rest alone, suggestions."""

from collections.abc import Callable
from typing import Any

import click
import pytest

from rankrt.cli.arguments import (
    Choice,
    Command,
    Group,
    Real,
    Whole,
    argument,
    file_option,
    list_option,
    option,
    sentence,
)
from rankrt.errors import InputError

Output = pytest.CaptureFixture[str]


@click.group("cook", cls=Group)
@click.version_option("1")
def cook() -> None:
    pass


@cook.command("bake", cls=Command)
@argument("cake", help="What to bake.")
@argument("tin", required=False, help="What to bake it in.")
@list_option("--spice", each=Choice(["salt", "clove"]), default=["salt"], group="Taste", help="What it tastes of.")
@list_option("--minutes", each=Whole(), help="When to look.")
@option("--oven", type=Choice(["gas", "wood"]), implied="gas", help="Which oven.")
@option("--max-heat", "heat", type=Real(0, 300), help="Degrees.", show_default="what the oven has")
@option("--wine-litres", type=Real(above=0), help="For the cook.")
@file_option("--note", help="What to read meanwhile.")
@option("--fast", is_flag=True, help="Whether to hurry.")
def bake(**found: Any) -> dict[str, Any]:
    if found["heat"] == 0:
        raise InputError("heat=0 leaves the cake cold; raise heat")
    return found


def parse(line: str) -> Any:
    arguments = line.split()
    with cook.make_context("cook", arguments) as context:
        return cook.invoke(context)


def mistake(line: str) -> str:
    with pytest.raises(click.UsageError) as raised:
        parse(line)
    return sentence(raised.value)


@pytest.mark.parametrize(
    "line",
    [
        "bake --spice salt clove plum tin --minutes 1 20",
        "bake plum tin --spice salt clove --minutes 1,20",
        "bake --spice=salt,clove --minutes 1 20 plum tin",
        "bake --spice salt --spice clove plum --minutes 1 --minutes 20 tin",
        "bake --fast --spice salt,clove plum --minutes 1 20 tin",
    ],
)
def test_an_option_with_several_values_leaves_positional_arguments_alone(line: str):
    found = parse(line)
    assert (found["cake"], found["tin"], found["spice"], found["minutes"]) == (
        "plum",
        "tin",
        ["salt", "clove"],
        [1, 20],
    )


def test_values_take_the_place_of_the_default():
    assert parse("bake plum")["spice"] == ["salt"]
    assert parse("bake plum --spice clove")["spice"] == ["clove"]
    assert parse("bake plum")["spice"] == ["salt"]
    assert parse("bake plum")["minutes"] is None


def test_an_option_whose_value_may_be_left_out_leaves_positional_arguments_alone():
    assert parse("bake --oven plum") == parse("bake plum --oven gas")
    assert parse("bake --oven wood plum")["oven"] == "wood"


def test_options_may_stand_between_and_before_positional_arguments():
    assert parse("bake --fast plum --note x tin") == parse("bake plum tin --fast --note=x")


@pytest.mark.parametrize("value", ["-x", "-", "-1", "-1e5", "a=b"])
def test_a_value_may_begin_with_a_dash(value: str):
    assert parse(f"bake plum --note {value}")["note"] == value
    assert parse(f"bake plum --note={value}")["note"] == value


def test_a_value_with_two_dashes_is_given_with_an_equals_sign():
    assert parse("bake plum --note=--fast")["note"] == "--fast"
    assert parse("bake plum --note=")["note"] == ""


def test_after_two_dashes_all_is_positional():
    assert parse("bake -- --plum")["cake"] == "--plum"
    found = parse("bake plum --fast -- --tin")
    assert (found["cake"], found["tin"], found["fast"]) == ("plum", "--tin", True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bakee plum", "'bakee' is not one of bake; did you mean bake?"),
        ("--versoin", "there is no option --versoin; did you mean --version?"),
        ("bake plum --not x", "there is no option --not; did you mean --note?"),
        ("bake plum --max 3", "there is no option --max"),
        ("bake plum -n", "there is no option -n"),
        ("bake --nonsense", "there is no option --nonsense"),
        ("bake plum --spice sald", "--spice: 'sald' is not one of salt, clove; did you mean salt?"),
        ("bake plum tin --spice salt clov", "unexpected argument 'clov'; did you mean clove?"),
        ("bake plum --oven wood --minutes x", "--minutes: 'x' is not a whole number"),
        ("bake plum --max-heat -1", "--max-heat: -1.0 is less than 0"),
        ("bake plum --max-heat 301", "--max-heat: 301.0 is more than 300"),
        ("bake plum --max-heat nan", "--max-heat: 'nan' is not a finite number"),
        ("bake plum --wine-litres 0", "--wine-litres: 0 is not more than 0"),
        ("bake plum --note", "--note needs a value"),
        ("bake plum --note --fast", "--note needs a value; one that begins with two dashes is given as --note=VALUE"),
        ("bake plum --fast=yes", "--fast does not take a value"),
        ("bake plum tin pan", "unexpected argument 'pan'"),
        ("bake", "CAKE is missing"),
        ("", "a command is missing; choose one of bake"),
    ],
)
def test_a_mistake_is_a_sentence_that_suggests_what_was_meant(line: str, message: str):
    assert mistake(line).startswith(message)
    assert "\n" not in mistake(line)


def test_an_error_of_the_library_names_options_as_they_are_typed():
    with pytest.raises(InputError, match=r"^--max-heat 0 leaves the cake cold; raise heat$"):
        parse("bake plum --max-heat 0")


def test_the_help_has_a_section_for_each_group_and_says_defaults(capsys: Output):
    with pytest.raises(click.exceptions.Exit):
        parse("bake --help")
    text = capsys.readouterr().out
    sections = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert sections == ["Arguments:", "Taste:", "Options:"]
    assert "CAKE" in text and "What to bake it in." in text
    assert "[default: salt]" in text and "[default: what the oven has]" in text


@pytest.fixture
def offer() -> Callable[[str], list[str]]:
    """Return what a shell offers where a line ends."""
    from click.shell_completion import ShellComplete

    def offer(line: str) -> list[str]:
        *words, last = line.split(" ")
        completion = ShellComplete(cook, {}, "cook", "_COOK_COMPLETE")
        return [item.value for item in completion.get_completions(words, last)]

    return offer


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("b", ["bake"]),
        ("bake plum --no", ["--note"]),
        ("bake plum --spice s", ["salt"]),
        ("bake plum --spice salt,c", ["salt,clove"]),
        ("bake plum --oven w", ["wood"]),
        ("bake plum --note fil", ["fil"]),
    ],
)
def test_lists_and_choices_complete(line: str, offered: list[str], offer: Callable[[str], list[str]]):
    assert offer(line) == offered
