"""Which fields of a body are obeyed, ignored or refused. Knows names, and whether a value asks for anything.

In every dialect a field that is null asks for nothing. A field that an endpoint's Struct declares is obeyed. A field
that would change the scores, and is not obeyed, is refused by name. A strict dialect refuses all other unknown fields.
The others ignore them, as their original servers do, unless the name is close to a known one.
"""

import difflib
import functools
from collections.abc import Collection, Iterable, Mapping
from typing import TypeAlias

import msgspec

from rankrt.server.failures import Failure

Given: TypeAlias = Mapping[str, bytes]

# Fields that SDKs and proxies add to any body. They cannot change a score.
HARMLESS = frozenset(
    {
        "backend",  # LocalAI's clients choose one of its libraries
        "cache_salt",  # vLLM's prefix cache
        "client_name",
        "custom_llm_provider",
        "dimensions",  # OpenAI's, as all up to `user`: made for embeddings
        "encoding_format",
        "extra_headers",
        "metadata",
        "prompt_cache_key",
        "return_len",  # Xinference: the number of tokens, which `usage` always has
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "litellm_call_id",
        "litellm_params",
        "mm_processor_kwargs",  # vLLM: how to read images, which are refused
        "padding",  # vLLM: a score is the same with or without it
        "temperature",  # of a language model, like all below: nothing is generated here
        "seed",
        "stop",
        "top_p",
    }
)

_INSTRUCTIONS = "it would change the scores; send an instruction as `instruction`, or the name of one as `prompt_name`"
_ACTIVATIONS = "it would change the scores"
_WINDOWS = "the server's option --long-documents decides how long documents are read"
_LENGTHS = "it would change how much of a text is read"
_MEDIA = "this server ranks text only"
_THRESHOLDS = "compare the scores of the answer yourself, or send `score_threshold` to POST /rankrt/rerank"

# Fields that change scores or answers, and have no meaning here unless a Struct gives them one.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "chat_template",
            "chat_template_kwargs",
            "instructions",
            "passage_instruction",
            "prompt",
            "query_instruction",
            "rewrite_query",
            "system_prompt",
            "task",
        ),
        _INSTRUCTIONS,
    ),
    **dict.fromkeys(
        (
            "activation",
            "activation_fn",
            "activation_function",
            "apply_sigmoid",
            "apply_softmax",
            "normalize",
            "raw_scores",
            "return_logits",
            "sigmoid",
            "softmax",
            "use_activation",
        ),
        _ACTIVATIONS,
    ),
    **dict.fromkeys(
        ("chunk_overlap", "chunk_size", "max_chunks_per_doc", "overlap_tokens", "relevant_spans"),
        _WINDOWS,
    ),
    **dict.fromkeys(
        (
            "auto_truncate",
            "max_doc_length",
            "max_length",
            "max_query_length",
            "max_tokens",
            "max_tokens_per_doc",
            "max_tokens_per_query",
            "truncate",
            "truncate_prompt_tokens",
            "truncation",
            "truncation_direction",
            "truncation_side",
        ),
        _LENGTHS,
    ),
    **dict.fromkeys(("audio", "image", "images", "image_url", "modality", "multi_modal_data", "video"), _MEDIA),
    **dict.fromkeys(("min_score", "score_threshold", "threshold"), _THRESHOLDS),
    "kwargs": "name each of its fields in the body itself",
    "rank_fields": "send the texts to rank by as documents; Cohere's /v1/rerank and Mixedbread's path know it",
    "stream": "POST /v1/rerank/stream answers with events",
}

# Values that ask for nothing, so they are accepted. For a cut, `true` is the default anyway.
_NOTHING = frozenset({b"false", b'""', b"{}", b"[]", b'"{}"'})
_CUTS = frozenset({"auto_truncate", "truncate", "truncation"})

# Names of fields in other APIs that spelling alone would not match.
_SYNONYMS = {
    "candidates": ("documents", "texts", "input"),
    "docs": ("documents", "texts", "input"),
    "document": ("documents", "texts", "input"),
    "documents": ("texts", "passages", "input"),
    "inputs": ("documents", "texts", "input"),
    "input": ("documents", "texts", "passages"),
    "k": ("top_n", "top_k"),
    "limit": ("top_n", "top_k"),
    "passages": ("documents", "texts", "input"),
    "question": ("query",),
    "q": ("query",),
    "return_documents": ("return_text", "return_input"),
    "return_text": ("return_documents", "return_input"),
    "sentences": ("documents", "texts", "input"),
    "texts": ("documents", "passages", "input"),
    "top_k": ("top_n",),
    "top_n": ("top_k",),
}
# "retrun_documents" is .94 like "return_documents" and "top_p" .8 like "top_n"; "query_id" is .77 like "query".
_LIKENESS = 0.85
# Comparing a name with the known ones takes 0.1 ms, in the server's loop.
_MAX_FIELDS = 100

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read(body: bytes) -> Given:
    """Return the fields of a body that are not null, each with the beginning of its JSON. A body must be an object."""
    try:
        fields = _FIELDS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return {name: value for name, raw in fields.items() if (value := bytes(memoryview(raw)[:8])) != b"null"}


@functools.cache
def names_of(shape: type[msgspec.Struct]) -> frozenset[str]:
    """Return the names of a Struct's fields."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(shape))


def misnames_of(known: Collection[str]) -> list[str]:
    """Return the names that fields have in other APIs, and not here."""
    return [name for name, meant in _SYNONYMS.items() if name not in known and not set(meant).isdisjoint(known)]


def check(
    given: Given, known: Collection[str], *, is_strict: bool, harmless: Collection[str], refused: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the fields that are ignored because they have no meaning here. Raises a Failure for one to refuse."""
    if len(given) > _MAX_FIELDS:
        raise Failure("invalid", f"too many fields: {len(given)} (limit {_MAX_FIELDS})")
    unknown = []
    for name, value in given.items():
        if name in known or name in harmless:
            continue
        if name in refused:
            asks_for_nothing = value == b"true" if name in _CUTS else value in _NOTHING
            if asks_for_nothing:
                continue
            raise Failure("invalid", f"`{name}` is not supported: {refused[name]}")
        meant = _meant(name, known)
        if is_strict or meant:
            shown = name[:50].encode("ascii", "backslashreplace").decode()
            did_you = f"; did you mean `{meant}`?" if meant else ""
            raise Failure("invalid", f"there is no field `{shown}` here{did_you}")
        unknown.append(name)
    return tuple(unknown)


def _meant(name: str, known: Iterable[str]) -> str | None:
    """Return the known field that is meant by a name: a similar one, or a synonym."""
    for synonym in _SYNONYMS.get(name, ()):
        if synonym in known:
            return synonym
    plain = {_plain(field): field for field in known}
    found = difflib.get_close_matches(_plain(name[:50]), plain, n=1, cutoff=_LIKENESS)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
