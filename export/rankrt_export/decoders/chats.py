"""What a chat template makes of a query and a document: the roles by which sentence-transformers (5.4 and later) asks.

A template is a program. It is run on marks in the place of texts, which shows its words, and then on texts that show
whether it changes them.
"""

from typing import Any

from rankrt.text.pairs import Pair
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.fields import token_of
from rankrt_export.decoders.wordings import INSTRUCTION, PROBES, Whole, Wording
from rankrt_export.errors import CheckpointError

_QUERY, _DOCUMENT = "\ue001", "\ue002"


def chat_template(checkpoint: Checkpoint) -> str | None:
    """Return the checkpoint's chat template: of chat_template.jinja, or of tokenizer_config.json."""
    path = checkpoint.folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read as text: {error}") from error
    found = checkpoint.tokenizer_config.get("chat_template")
    if isinstance(found, list):  # several by name
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def whole_of_chat(checkpoint: Checkpoint, template: str) -> Whole:
    """Return the words that a chat template puts around query and document.

    Raises CheckpointError if it cannot be rendered, leaves one of the texts out, or changes it.
    """
    plain, passage_first = _wording(checkpoint, rendered(checkpoint, template, (_QUERY, _DOCUMENT)))
    whole = Whole(plain=plain, instructed=_instructed(checkpoint, template), passage_first=passage_first)
    for changed in (whole, Whole(plain=plain, instructed=whole.instructed, passage_first=passage_first, strips=True)):
        if all(rendered(checkpoint, template, pair) == changed.text(pair) for pair in PROBES if all(pair)):
            return changed
    raise CheckpointError(
        f"the chat template of {checkpoint.folder} changes the texts of the roles query and document, by more than"
        " white space around them; this is not implemented"
    )


def rendered(checkpoint: Checkpoint, template: str, pair: Pair, instruction: str | None = None) -> str:
    """Return a pair as sentence-transformers puts it into a chat template: a message for each role."""
    from transformers.utils.chat_template_utils import render_jinja_template

    saved = checkpoint.saved
    given = saved.default_prompt if instruction is None else instruction
    roles = zip(("system", "query", "document"), (given, *pair), strict=True)
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if saved.is_structured else text}
        for role, text in roles
        if text or role != "system"
    ]
    special = {key: token_of(checkpoint.tokenizer_config, key) or "" for key in ("bos_token", "eos_token", "pad_token")}
    options: dict[str, Any] = special | dict(saved.chat_options)
    try:
        found, _ = render_jinja_template([messages], chat_template=template, **options)
        return str(found[0])
    except Exception as error:  # what a template may raise is jinja's, and the template's own
        raise CheckpointError(
            f"the chat template of {checkpoint.folder} cannot be rendered with the roles query and document: {error}"
        ) from error


def _wording(checkpoint: Checkpoint, text: str) -> tuple[Wording, bool]:
    for mark, role in ((_QUERY, "query"), (_DOCUMENT, "document")):
        if (n := text.count(mark)) != 1:
            raise CheckpointError(
                f"the chat template of {checkpoint.folder} cannot carry a query and a document: what it renders has the"
                f" message of the role {role} {n} times ({text!r:.200}). A chat model is not a reranker"
            )
    passage_first = text.index(_DOCUMENT) < text.index(_QUERY)
    first, second = (_DOCUMENT, _QUERY) if passage_first else (_QUERY, _DOCUMENT)
    before, _, rest = text.partition(first)
    between, _, after = rest.partition(second)
    return Wording(before=before, between=between, after=after), passage_first


def _instructed(checkpoint: Checkpoint, template: str) -> Wording | None:
    """Return the words with a request's instruction, as a system message; None if the template does not show it."""
    try:
        text = rendered(checkpoint, template, (_QUERY, _DOCUMENT), INSTRUCTION)
        return _wording(checkpoint, text)[0] if INSTRUCTION in text else None
    except CheckpointError:
        return None
