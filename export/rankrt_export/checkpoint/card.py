"""The model card: the licence and the languages that the front matter of README.md names. Knows no model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CARD = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a card says; None and () where it does not, or where there is none."""

    license: str | None = None
    languages: tuple[str, ...] = ()


def read_card(folder: Path) -> Card:
    """Read the card of a checkpoint. Nothing is computed from it, so one that cannot be read says nothing."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        said = metadata_load(folder / CARD) if (folder / CARD).is_file() else None
    except (OSError, ValueError, YAMLError):
        return Card()
    if not isinstance(said, dict):
        return Card()
    named = said.get("license_name") if said.get("license") == "other" else said.get("license")
    return Card(license=next(_texts(named), None), languages=tuple(_texts(said.get("language"))))


def _texts(value: Any) -> Iterator[str]:
    return (item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str) and item)
