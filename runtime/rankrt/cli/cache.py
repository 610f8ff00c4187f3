"""`rankrt cache`: what this host's cache holds, in a table or as JSON; removing what is of no use, or all of it."""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rankrt.files.cache import HostCache, Item

HELP = "list, tidy or clear what rankrt keeps on this host"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="show all entries with their sizes and when they were last used")
    listing.add_argument("--json", action="store_true", help="print JSON")
    actions.add_parser(
        "prune", help="remove entries of other versions, leftovers, damaged entries, and what exceeds RANKRT_CACHE_MAX"
    )
    actions.add_parser("clear", help="remove everything that no process uses")


def run(options: argparse.Namespace) -> int:
    """List, prune or clear. Raises CacheError if there is no cache to look at."""
    cache = HostCache()
    if options.action == "list":
        show = _print_json if options.json else _print_table
        show(cache, cache.items())
    elif options.action == "prune":
        removed = cache.prune()
        for item in removed:
            print(_line(item))
        print(f"freed {_megabytes(removed)} in {cache.folder}")
    else:
        removed, left = cache.clear()
        print(f"freed {_megabytes(removed)} in {cache.folder}")
        for item in left:
            why = "a process uses it" if item.is_in_use else item.remark or "it could not be removed"
            print(f"left {item.path}: {why}", file=sys.stderr)
    return 0


def _print_table(cache: HostCache, items: list[Item]) -> None:
    for item in items:
        if item.state != "lock":
            print(_line(item))
    limit = "no limit (RANKRT_CACHE_MAX)" if cache.limit is None else f"limit {cache.limit / 1e6:,.0f} MB"
    print(f"{cache.folder}: {_megabytes(items)}, {limit}", file=sys.stderr)


def _line(item: Item) -> str:
    state = "in use" if item.is_in_use and item.state == "ready" else item.state
    # Of a hash as much as people compare.
    short = {name: value[:12] if len(value) == 64 else value for name, value in item.depends_on.items()}
    facts = [value if name == "engine" else f"{name} {value}" for name, value in short.items()]
    details = ", ".join([*facts, *([item.remark] if item.remark else [])])
    name = f"{item.name} {item.variant}".rstrip()
    return f"{_megabytes([item]):>11}  {_age(item):>7}  {state:<10}  {item.kind:<8}  {name}  {details}".rstrip()


def _print_json(cache: HostCache, items: list[Item]) -> None:
    entries: list[dict[str, Any]] = [{**asdict(item), "path": str(item.path)} for item in items]
    answer = {
        "folder": str(cache.folder),
        "n_bytes": sum(item.n_bytes for item in items),
        "limit": cache.limit,
        "entries": entries,
    }
    print(json.dumps(answer, ensure_ascii=False))


def _megabytes(items: Iterable[Item]) -> str:
    return f"{sum(item.n_bytes for item in items) / 1e6:,.1f} MB"


def _age(item: Item) -> str:
    """Say how long ago an item was last used."""
    seconds = max(0.0, time.time() - item.used_at)
    for unit, n_seconds in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= n_seconds:
            return f"{seconds / n_seconds:.0f} {unit}"
    return f"{seconds:.0f} s"
