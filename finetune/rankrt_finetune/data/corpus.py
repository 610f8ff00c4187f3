"""The passages that negatives are mined from: JSON Lines, CSV, or one a line of text.

An object has a "text", perhaps a "title", which is put before the text as BEIR does, and perhaps an "id". Ids are
not needed, because negatives are written as text. An id that stands in the file twice is an error.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankrt.cli.inputs import open_input, read_documents
from rankrt.errors import InputError
from rankrt_finetune.data.queries import digest

_IDS = ("id", "_id", "docid", "doc_id", "docno", "pid")


def read_corpus(path: Path | str) -> tuple[str, ...]:
    """Return the passages of a file, each text once. Raises InputError, with the line."""
    with open_input(str(path)) as file:
        documents = read_documents(file, str(path))
    if not documents:
        raise InputError(f'{path} has no passages; expected lines of {{"id": str, "text": str}}')
    texts: dict[int, str] = {}
    places: dict[str, str] = {}
    for document in documents:
        if not document.text.strip():
            raise InputError(f"{document.place}: the text is empty. Remove the line")
        if (id := _id(document.fields)) is not None and (first := places.setdefault(id, document.place.short)) != (
            document.place.short
        ):
            raise InputError(f"{document.place}: the id {id} is also that of {first}; every passage needs its own")
        texts.setdefault(digest(document.text), _titled(document.text, document.fields))
    return tuple(texts.values())


def _id(fields: Mapping[str, Any]) -> str | None:
    return next((str(fields[key]) for key in _IDS if fields.get(key) is not None), None)


def _titled(text: str, fields: Mapping[str, Any]) -> str:
    title = fields.get("title")
    return f"{title.strip()} {text}" if isinstance(title, str) and title.strip() else text
