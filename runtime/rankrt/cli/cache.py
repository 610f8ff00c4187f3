"""`rankrt cache`: list this host's cache in a table or as JSON, remove useless entries, or remove all of them."""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from rankrt.cli.arguments import Command, Group, option
from rankrt.files.cache import HostCache, Item


@click.group("cache", cls=Group)
def cache() -> None:
    """Look at this host's cache. The actions raise CacheError if there is no cache to look at."""


@cache.command("list", cls=Command)
@option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_entries(as_json: bool) -> None:
    """Show all entries with their sizes and when they were last used."""
    found = HostCache()
    show = _print_json if as_json else _print_table
    show(found, found.items())


@cache.command("prune", cls=Command)
def prune() -> None:
    """Remove entries of other versions, leftovers, damaged entries, and what exceeds RANKRT_CACHE_MAX."""
    found = HostCache()
    removed = found.prune()
    for item in removed:
        print(_line(item))
    print(f"freed {_megabytes(removed)} in {found.folder}")


@cache.command("clear", cls=Command)
def clear() -> None:
    """Remove everything that no process uses."""
    found = HostCache()
    removed, left = found.clear()
    print(f"freed {_megabytes(removed)} in {found.folder}")
    for item in left:
        why = "a process uses it" if item.is_in_use else item.remark or "it could not be removed"
        print(f"left {item.path}: {why}", file=sys.stderr)


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
