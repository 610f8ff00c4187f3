"""How arguments are read: whole names, lists that leave the rest alone, suggestions."""

from typing import Any

import pytest

from rankrt.cli.arguments import Parser, Several, real, whole

Output = pytest.CaptureFixture[str]


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="cook")
    parser.add_argument("--version", action="version", version="1")
    subparsers = parser.add_subparsers(dest="command", required=True)
    bake = subparsers.add_parser("bake")
    bake.add_argument("cake")
    bake.add_argument("tin", nargs="?")
    bake.add_argument("--spice", action=Several, values=["salt", "clove"], default=["salt"])
    bake.add_argument("--minutes", action=Several, convert=whole())
    bake.add_argument("--oven", nargs="?", choices=["gas", "wood"], const="gas")
    bake.add_argument("--max-heat", type=real(0, 300), dest="heat")
    bake.add_argument("--note")
    bake.add_argument("--fast", action="store_true")
    return parser


def parse(parser: Parser, line: str) -> dict[str, Any]:
    return vars(parser.parse_args(line.split()))


def mistake(parser: Parser, line: str, capsys: Output) -> str:
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(line.split())
    assert stop.value.code == 2
    return capsys.readouterr().err


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
def test_an_option_with_several_values_leaves_positional_arguments_alone(parser: Parser, line: str):
    found = parse(parser, line)
    assert (found["cake"], found["tin"], found["spice"], found["minutes"]) == (
        "plum",
        "tin",
        ["salt", "clove"],
        [1, 20],
    )


def test_values_take_the_place_of_the_default(parser: Parser):
    assert parse(parser, "bake plum")["spice"] == ["salt"]
    assert parse(parser, "bake plum --spice clove")["spice"] == ["clove"]
    assert parse(parser, "bake plum")["spice"] == ["salt"]


def test_an_option_whose_value_may_be_left_out_leaves_positional_arguments_alone(parser: Parser):
    assert parse(parser, "bake --oven plum") == parse(parser, "bake plum --oven gas")
    assert parse(parser, "bake --oven wood plum")["oven"] == "wood"


def test_options_may_stand_between_and_before_positional_arguments(parser: Parser):
    assert parse(parser, "bake --fast plum --note x tin") == parse(parser, "bake plum tin --fast --note=x")


@pytest.mark.parametrize("value", ["-x", "-", "-1", "-1e5", "a=b"])
def test_a_value_may_begin_with_a_dash(parser: Parser, value: str):
    assert parse(parser, f"bake plum --note {value}")["note"] == value
    assert parse(parser, f"bake plum --note={value}")["note"] == value


def test_after_two_dashes_all_is_positional(parser: Parser):
    assert parse(parser, "bake -- --plum")["cake"] == "--plum"
    found = parse(parser, "bake plum --fast -- --tin")
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
        ("bake plum --spice sald", "argument --spice: 'sald' is not one of salt, clove; did you mean salt?"),
        ("bake plum tin --spice salt clov", "unexpected argument 'clov'; did you mean clove?"),
        ("bake plum --oven wood --minutes x", "argument --minutes: 'x' is not a whole number"),
        ("bake plum --max-heat -1", "argument --max-heat: -1.0 is less than 0"),
        ("bake plum --max-heat 301", "argument --max-heat: 301.0 is more than 300"),
        ("bake plum --max-heat nan", "argument --max-heat: 'nan' is not a finite number"),
        ("bake plum --note", "--note needs a value"),
        ("bake plum --note --fast", "--note needs a value; one that begins with two dashes is given as --note=VALUE"),
        ("bake plum tin pan", "unexpected argument 'pan'"),
        ("bake", "the following arguments are required: cake"),
        ("", "the following arguments are required: command"),
    ],
)
def test_a_mistake_is_a_sentence_that_suggests_what_was_meant(parser: Parser, line: str, message: str, capsys: Output):
    error = mistake(parser, line, capsys)
    assert message in error
    assert error.startswith("cook") and error.count("\n") == 2 and "--help` for what it takes" in error


def test_options_are_known_by_the_names_of_their_values(parser: Parser):
    other = Parser()
    other.add_argument("--threads", dest="n_threads")
    assert other.spelling["n_threads"] == "--threads"
