"""Every variant against the PyTorch model, on text: the same ids in, logits compared.

The reference runs each row alone and without padding, in fp32, through transformers. The rows that it sees are the
checkpoint's own tokenizer's, so a wrong template is found here as well as a wrong graph.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import msgspec
import numpy as np

from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Example, Margins, Variant, Verification
from rankrt.artifact.precisions import PRECISIONS, Precision
from rankrt.errors import ScoreError
from rankrt.llm.progressive import overtaken_gaps
from rankrt.text.pairs import Pair
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.decoders.styles import Style
from rankrt_export.errors import VariantError, VerificationError
from rankrt_export.graph.blueprint import Readout
from rankrt_export.reference.pytorch import Row, load_model, scores, tokenized
from rankrt_export.reference.pytorch_decoder import asked_rows, decoder_logits
from rankrt_export.text.ranks import by_query, mean_overlap, taus
from rankrt_export.text.texts import Question, Texts
from rankrt_export.verify.rows import RowMaker
from rankrt_export.verify.scorers import Scorer

TOP_K = 3
# Margins are kept for these shares of the pairs of passages; the last is the largest gap that was seen.
MARGIN_SHARES = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
# How long a row is by default, on any host.
EXAMPLE_LENGTH = 512
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far a variant may be from the PyTorch model: in logits at most, in Kendall's tau at least.

    The tau is the mean over the queries: one query with two passages of equal worth says nothing.
    """

    max_difference: float
    min_tau: float


# Logits of decoders are larger, and their residuals grow from layer to layer: what counts for a ranking is alike.
EXACT_DECODER_LIMITS = Limits(max_difference=1e-3, min_tau=0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The PyTorch model's logits for all pairs of some texts, and what computed them.

    logits    (n_pairs,) or, of a decoder, (n_exits, n_pairs)
    examples  other pairs with their logits, of a decoder at the last exit
    """

    texts: Texts
    logits: Float32Array
    made_by: str
    examples: tuple[Example, ...] = ()

    @classmethod
    def of(cls, texts: Texts, examples: Sequence[Pair], logits: Float32Array) -> Self:
        """Divide logits, (..., n_pairs + n_examples), of the texts' pairs and of examples after them."""
        ours, theirs = np.split(logits, [len(texts.pairs)], axis=-1)
        at_end = theirs if theirs.ndim == 1 else theirs[-1]
        shown = tuple(
            Example(query=query, passage=passage, logit=float(logit))
            for (query, passage), logit in zip(examples, at_end, strict=True)
        )
        return cls(texts=texts, logits=ours, made_by=_versions(), examples=shown)

    def at(self, logits: Float32Array) -> "Reference":
        """Return the same for the logits of one exit."""
        return replace(self, logits=logits)


def example_pairs(texts: Texts, rows: RowMaker, n: int) -> list[Pair]:
    """Return n pairs, or fewer if there are not as many, by which a host can check itself.

    They go round the questions, hence languages, with 1 to 8 passages joined to one: the first, which answer, or the
    last, which do not. None is cut by the rules that a host has by default.
    """
    by_default = replace(rows.rules, max_length=min(EXAMPLE_LENGTH, rows.rules.max_length))
    template = rows.tokenizer.template(by_default)
    if template.prompt is not None and template.prompt.question is None and by_default.truncation == "only_passage":
        # The words of a long prompt leave less than the three quarters of a row that a query may have.
        half = max(1, template.room(by_default.max_length) // 2)
        by_default = replace(by_default, query_max_length=min(by_default.n_query_tokens, half))
    parts = [slice(1), slice(-2, None), slice(4), slice(-1, None), slice(8), slice(-4, None), slice(2)]
    rounds = itertools.product(range(len(parts)), enumerate(texts.questions))
    joined = ((q.query, " ".join(q.passages[parts[(i + turn) % len(parts)]])) for turn, (i, q) in rounds)
    candidates = list(dict.fromkeys(joined))
    encoded = rows.tokenizer.encode(candidates, by_default)
    whole = np.flatnonzero(~(encoded.truncated | encoded.query_truncated))
    return [candidates[i] for i in whole[:n]]


def reference(
    checkpoint: Checkpoint, rows: RowMaker, texts: Texts, examples: Sequence[Pair], progress: Progress
) -> Reference:
    """Score all pairs with the PyTorch model, cut by the rules of `rows`; `progress` is told of each pair done."""
    theirs = reference_rows(checkpoint, rows, [*texts.pairs, *examples])
    return Reference.of(texts, examples, scores(load_model(checkpoint), theirs, progress))


def decoder_reference(
    checkpoint: Checkpoint,
    rows: RowMaker,
    style: Style,
    readouts: Sequence[Readout],
    ratios: Mapping[int, int],
    texts: Texts,
    examples: Sequence[Pair],
    progress: Progress,
) -> Reference:
    """Score all pairs with the PyTorch model of a decoder, layer by layer; `progress` is told of each pair done.

    `ratios` are those by which passages are compressed, by layer.
    """
    pairs = [*texts.pairs, *examples]
    theirs = asked_rows(checkpoint, style, pairs, rows.rules.max_length)
    _check_ids([row.ids for row in theirs], rows, pairs)
    return Reference.of(texts, examples, decoder_logits(checkpoint, readouts, ratios, theirs, progress))


def _versions() -> str:
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def reference_rows(checkpoint: Checkpoint, rows: RowMaker, pairs: Sequence[Pair]) -> list[Row]:
    """Tokenize pairs with the checkpoint's own tokenizer, which has to give the ids that the artifact's gives.

    Raises VerificationError with the first pair for which it does not.
    """
    theirs = tokenized(checkpoint, pairs, rows.rules.max_length)
    _check_ids([row["input_ids"] for row in theirs], rows, pairs)
    return theirs


def _check_ids(theirs: Sequence[Sequence[int]], rows: RowMaker, pairs: Sequence[Pair]) -> None:
    ours = rows.encode(pairs)
    for i, pair in enumerate(pairs):
        if (expected := list(theirs[i])) != (found := ours.row(i).tolist()):
            equal = [a == b for a, b in zip(expected, found, strict=False)]
            n = equal.index(False) if False in equal else len(equal)
            raise VerificationError(
                f"tokenizer.json and transformers do not agree: of the query {pair[0]!r:.80} and the passage"
                f" {pair[1]!r:.80} transformers makes {len(expected)} tokens, the artifact {len(found)}; after the"
                f" first {n} they are {expected[n : n + 8]} and {found[n : n + 8]}; nothing was written"
            )


def verify(scorer: Scorer, against: Reference, limits: Limits, progress: Progress) -> Variant:
    """Compare a variant's logits with the reference's, question by question; return the variant with what was found.

    Raises VariantError, with the figures, if the variant is outside its limits or answers NaN or infinity.
    """
    variant, blocks = scorer.variant, []
    for question in against.texts.questions:
        blocks.append(_logits(scorer, question))
        progress(len(question.passages))
    logits = np.concatenate(blocks, axis=-1)
    if not variant.exits:
        return msgspec.structs.replace(variant, verification=_check(variant.name, variant, logits, against, limits))
    # Of several exits a graph for a GPU has the last.
    expected = against.logits[-len(variant.exits) :]
    found = [
        _check(f"{variant.name}, layer {end.layer},", variant, ours, against.at(theirs), limits)
        for end, ours, theirs in zip(variant.exits, logits, expected, strict=True)
    ]
    exits = [
        msgspec.structs.replace(end, verification=v, margins=margins_of(here, logits[-1], against.texts))
        for end, v, here in zip(variant.exits, found, logits, strict=True)
    ]
    return msgspec.structs.replace(variant, exits=tuple(exits), verification=found[-1])


def margins_of(here: Float32Array, at_end: Float32Array, texts: Texts) -> Margins:
    """Return how the scores of an exit, (n_pairs,), change until the end."""
    queries = zip(by_query(here, texts), by_query(at_end, texts), strict=True)
    gaps = np.concatenate([overtaken_gaps(a, b) for a, b in queries] + [np.zeros(1, np.float32)])
    return Margins(
        shares=MARGIN_SHARES,
        gaps=tuple(float(gap) for gap in np.quantile(gaps, MARGIN_SHARES, method="higher")),
        rise=float(np.max(at_end - here)),
    )


def _check(name: str, variant: Variant, logits: Float32Array, against: Reference, limits: Limits) -> Verification:
    found = compare(logits, against)
    if found.max_difference > limits.max_difference or found.mean_tau < limits.min_tau:
        raise VariantError(
            f"{name} differs from PyTorch by up to {found.max_difference:.2g} (limit {limits.max_difference:g}), with a"
            f" mean Kendall's tau of {found.mean_tau:.3f} (at least {limits.min_tau:g})",
            variant=variant.key,
            excess=max(1.0, found.max_difference / limits.max_difference),
        )
    return found


def _logits(scorer: Scorer, question: Question) -> Float32Array:
    try:
        pairs = [(question.query, passage) for passage in question.passages]
        exits = [end.layer for end in scorer.variant.exits]
        return scorer.score(pairs, cutoff_layers=exits) if exits else scorer.score(pairs)
    except ScoreError as error:
        raise VariantError(f"{error} ({question.query!r})", variant=scorer.variant.key) from error


def limits_for(
    precision: Precision, max_difference: float | None, min_tau: float | None, *, is_decoder: bool = False
) -> Limits:
    """Return a precision's limits, with those that a user gave instead, unless it has to be exact whatever they are."""
    row = PRECISIONS[precision]
    if row.is_exact:
        return EXACT_DECODER_LIMITS if is_decoder else Limits(max_difference=row.max_difference, min_tau=row.min_tau)
    return Limits(
        max_difference=row.max_difference if max_difference is None else max_difference,
        min_tau=row.min_tau if min_tau is None else min_tau,
    )


def compare(logits: Float32Array, against: Reference) -> Verification:
    """Return how far logits for all pairs, (n_pairs,), are from the reference's."""
    difference = np.abs(logits.astype(np.float64) - against.logits)
    of_queries = taus(logits, against.logits, against.texts)
    return Verification(
        reference=against.made_by,
        text_sha256=against.texts.sha256,
        n_queries=len(against.texts.questions),
        n_pairs=len(logits),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        min_tau=min(of_queries),
        mean_tau=float(np.mean(of_queries)),
        top_k=TOP_K,
        top_k_overlap=mean_overlap(logits, against.logits, against.texts, TOP_K),
    )
