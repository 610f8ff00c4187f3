"""Queries and documents as clients write them: a text, an object with a text, or parts of content that are text.

Other values are refused while the body is decoded, so that the error names the place.
"""

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from rankrt.server.failures import Failure

# A regular expression that every JSON schema understands; the check itself is `check_query`.
Query: TypeAlias = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": r"\S"})]
Texts: TypeAlias = Annotated[list[str], msgspec.Meta(extra_json_schema={"minItems": 1})]

# A document of several fields. Some of them are ranked by.
Fields: TypeAlias = dict[str, str | int | float | bool | None]

# Fields of such objects in other servers' requests. They are refused here.
_MEDIA = ("audio", "image", "image_url", "images", "video", "video_url")


class Part(msgspec.Struct, frozen=True):
    """A part of content: `{"type": "text", "text": ...}`."""

    text: str | None = None
    type: str = "text"

    def __post_init__(self) -> None:
        if self.type != "text" or self.text is None:
            raise ValueError(f"this server ranks text only, not a part of type `{self.type[:30]}`")


class Text(msgspec.Struct, frozen=True):
    """A text in an object, as either `text` or `content`. Other fields, such as an id, are allowed."""

    text: str | None = None
    content: str | list[Part] | None = None
    audio: Any = None
    image: Any = None
    image_url: Any = None
    images: Any = None
    video: Any = None
    video_url: Any = None

    def __post_init__(self) -> None:
        for name in _MEDIA:
            if getattr(self, name) is not None:
                raise ValueError(f"this server ranks text only, not `{name}`")
        if (self.text is None) == (self.content is None):
            raise ValueError("expected either `text` or `content`")


Document: TypeAlias = str | Text | list[Part]
Documents: TypeAlias = Annotated[list[Document], msgspec.Meta(extra_json_schema={"minItems": 1})]
QueryDocument: TypeAlias = Query | Text | list[Part]


def check_query(query: QueryDocument) -> str:
    """Return the text of a query. Raises a Failure for an empty one."""
    text = text_of(query)
    if not text.strip():
        raise Failure("invalid", "the query is empty: there is nothing to rank by")
    return text


def text_of(document: Document) -> str:
    """Return the text of a document. Parts of content are joined as in vLLM."""
    if isinstance(document, str):
        return document
    if isinstance(document, list):
        return "".join(part.text or "" for part in document)
    return document.text if document.text is not None else text_of(document.content or "")


def texts_of(documents: Sequence[Document]) -> list[str]:
    """Return the texts of documents. Raises a Failure if there are none."""
    if not documents:
        raise Failure("empty", "there are no documents to rank")
    return [text_of(document) for document in documents]


def text_of_fields(document: str | Fields, rank_fields: Sequence[str] | None) -> str:
    """Return the text that a document is ranked by: its own, or its fields as lines of YAML, as Cohere advises."""
    if isinstance(document, str):
        return document
    for name in rank_fields or ["text"]:
        if name not in document:
            raise Failure("invalid", f"a document has no field {name[:50]!r}; name those to rank by in rank_fields")
    if not rank_fields:
        return str(document["text"])
    return "\n".join(f"{name}: {document[name]}" for name in rank_fields)
