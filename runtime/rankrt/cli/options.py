"""Options that are fields of a dataclass, which says their names, types and defaults; here are the words of the help.

A field is declared once, in the library. A command says which fields it takes and gets their values together.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from types import NoneType
from typing import Any, Literal, TypeAlias, get_args, get_origin

import click

from rankrt.cli.arguments import Choice, Kind, Megabytes, Real, Whole, option
from rankrt.options import LoadOptions
from rankrt.text.options import Rules

_Command: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What the help says of an option.

    otherwise   the value where the option is left out, if the field's default does not say it
    """

    help: str
    metavar: str | None = None
    otherwise: str | None = None


DEVICE_HELP = "Where to run: auto, cpu, cuda or tensorrt. cuda:1 is the second GPU. TensorRT is experimental."
_MODEL = {
    "device": Words(help=DEVICE_HELP, metavar="D"),
    "precision": Words(help="Precision to run in. auto takes the best that is verified."),
    "instruction_set": Words(help="Graph of int8 or fp32 to run.", otherwise="the fastest on this processor"),
    "n_threads": Words(help="Threads of the model.", metavar="N", otherwise="the physical cores that may be used"),
    "gpu_memory_gb": Words(help="Most memory that CUDA may take, in GiB.", metavar="N", otherwise="no limit"),
    "revision": Words(help="Branch, tag or commit of a Hub repository.", metavar="R", otherwise="the newest"),
    "prepare": Words(help="Keep prepared models in the cache of this host."),
}
_TEXT = {
    "max_length": Words(
        help="Most tokens of a row: query, passage and special tokens.",
        metavar="N",
        otherwise="512 or the model's limit",
    ),
    "query_max_length": Words(help="Most tokens of a query.", metavar="N", otherwise="three quarters of --max-length"),
    "truncation": Words(help="Text that loses tokens first if a row is too long."),
    "long_documents": Words(help="Score the beginning, or overlapping windows of which the best one counts."),
    "instruction": Words(
        help="Text that tells the model what to look for.", metavar="TEXT", otherwise="the model's own, if it has one"
    ),
    "prompt_name": Words(help="Name of such a text in the artifact.", metavar="NAME", otherwise="the model's own"),
}

cutoff_layer = option(
    "--cutoff-layer",
    type=Whole(),
    group="Model",
    metavar="N",
    help="Layer of a layerwise model whose score is returned.",
    show_default="the last",
)


normalize = option("--normalize", is_flag=True, group="Output", help="Print the sigmoid of the logits, from 0 to 1.")
calibrated = option(
    "--calibrated",
    is_flag=True,
    group="Output",
    help="Print probabilities, by the calibration that rankrt calibrate gave the artifact.",
)
score_threshold = option(
    "--score-threshold",
    type=Real(),
    group="Output",
    metavar="X",
    help="Leave out what scores below X: a logit, or a number from 0 to 1 with --normalize or --calibrated.",
)


def load_options(*, without: Iterable[str] = ()) -> Callable[[_Command], _Command]:
    """Declare what `Reranker.load` takes besides the model. The command gets it as `load`, by those keywords."""
    model, text = ({name: said[name] for name in said if name not in without} for said in (_MODEL, _TEXT))
    declared = [
        *(_declared("Model", name, words, LoadOptions) for name, words in model.items()),
        *(_declared("Text", name, words, Rules) for name, words in text.items()),
    ]
    return _together("load", [*model, *text], declared)


def options_of(group: str, kind: type, words: Mapping[str, Words]) -> Callable[[_Command], _Command]:
    """Declare fields of a dataclass. The command gets their values as a mapping, called like the group."""
    return _together(group.lower(), words, [_declared(group, name, said, kind) for name, said in words.items()])


def _together(
    keyword: str, names: Iterable[str], declared: list[Callable[[_Command], _Command]]
) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        @wraps(command)
        def collecting(**values: Any) -> Any:
            return command(**{keyword: {name: values.pop(name) for name in names}}, **values)

        found: _Command = collecting
        for declare in reversed(declared):
            found = declare(found)
        return found

    return decorate


def _declared(group: str, name: str, words: Words, kind: type) -> Callable[[_Command], _Command]:
    (field,) = (field for field in fields(kind) if field.name == name)
    attributes: dict[str, Any] = {
        "help": words.help,
        "metavar": words.metavar,
        "group": group,
        "default": field.default,
    }
    spelled = f"--{name.removeprefix('n_').replace('_', '-')}"
    if words.otherwise is not None:
        attributes |= {"default": None, "show_default": words.otherwise}
    if field.type is bool:
        return option(f"{spelled}/--no-{spelled[2:]}", name, **attributes)
    if name.endswith("_bytes"):
        attributes |= {"default": str(attributes["default"] >> 20), "type": Megabytes()}
        return option(f"{spelled.removesuffix('-bytes')}-mb", name, **attributes)
    return option(spelled, name, type=_type(field.type, field.default), **attributes)


def _type(hint: Any, default: object) -> Kind:
    """Return how the words of an option become the value of a field."""
    parts = [hint] if get_origin(hint) is Literal else get_args(hint) or [hint]
    if choices := [word for part in parts if get_origin(part) is Literal for word in get_args(part)]:
        return Choice(sorted(choices, key=lambda word: word != default))
    (kind,) = (part for part in parts if part is not NoneType)
    kinds: Mapping[Any, Kind] = {int: Whole(), float: Real(above=0), str: click.STRING}
    return kinds[kind]
