"""Every variant against the PyTorch model, on text: the same ids in, logits compared.

The reference runs each row alone and without padding, in fp32, through transformers. The rows that it sees are the
checkpoint's own tokenizer's, so a wrong template is found here as well as a wrong graph.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rankrt.arrays import Float32Array
from rankrt.artifact import PRECISIONS, Example, Precision, Verification
from rankrt.errors import ScoreError
from rankrt.reranker import Reranker
from rankrt_export.checkpoint import Checkpoint
from rankrt_export.errors import DriftError, VerificationError
from rankrt_export.pytorch import Row, load_model, scores, tokenized
from rankrt_export.ranks import mean_overlap, taus
from rankrt_export.texts import Question, Texts

TOP_K = 3
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far a variant may be from the PyTorch model: in logits at most, in Kendall's tau at least.

    The tau is the mean over the queries: one query with two passages of equal worth says nothing.
    """

    max_difference: float
    min_tau: float


# fp32 differs by the order of summation only: 5.5e-5 was measured with 24 random layers of XLM-R-large, which amplify
# more than trained ones. fp16 rounds weights to 11 bits: 0.071 there, 0.035 with a small trained model.
DEFAULT_LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(max_difference=1e-4, min_tau=0.99),
    "fp16": Limits(max_difference=0.25, min_tau=0.97),
    "int8": Limits(max_difference=0.25, min_tau=0.97),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The PyTorch model's logits for all pairs of some texts, (n_pairs,), and what computed them."""

    texts: Texts
    logits: Float32Array
    made_by: str

    def examples(self, n: int) -> tuple[Example, ...]:
        """Return the first n pairs with their logits."""
        pairs = zip(self.texts.pairs[:n], self.logits[:n], strict=True)
        return tuple(Example(query=q, passage=p, logit=float(logit)) for (q, p), logit in pairs)


def reference(checkpoint: Checkpoint, reranker: Reranker, texts: Texts, progress: Progress) -> Reference:
    """Score all pairs with the PyTorch model, cut by the reranker's rules; `progress` is told of each pair done."""
    import torch
    import transformers

    rows = reference_rows(checkpoint, reranker, texts)
    logits = scores(load_model(checkpoint), rows, progress)
    made_by = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return Reference(texts=texts, logits=logits, made_by=made_by)


def reference_rows(checkpoint: Checkpoint, reranker: Reranker, texts: Texts) -> list[Row]:
    """Tokenize all pairs with the checkpoint's own tokenizer, which has to give the ids that the reranker gives.

    Raises VerificationError with the first pair for which it does not.
    """
    theirs = tokenized(checkpoint, texts.pairs, reranker.rules.max_length)
    ours = reranker.encode(texts.pairs)
    for i, pair in enumerate(texts.pairs):
        if theirs[i]["input_ids"] != ours.row(i).tolist():
            raise VerificationError(
                f"tokenizer.json and transformers do not agree: of {pair} transformers makes {theirs[i]['input_ids']},"
                f" the artifact {ours.row(i).tolist()}; nothing was written"
            )
    return theirs


def verify(reranker: Reranker, against: Reference, limits: Limits, progress: Progress) -> Verification:
    """Compare a variant's logits with the reference's, question by question.

    Raises VerificationError, with the figures, if the variant is outside its limits or answers what is no number.
    """
    name, blocks = reranker.variant.name, []
    for question in against.texts.questions:
        blocks.append(_logits(reranker, question))
        progress(len(question.passages))
    found = compare(np.concatenate(blocks), against)
    if found.max_difference > limits.max_difference or found.mean_tau < limits.min_tau:
        raise DriftError(
            f"{name} differs from PyTorch by up to {found.max_difference:.2g} (limit {limits.max_difference:g}), with a"
            f" mean Kendall's tau of {found.mean_tau:.3f} (at least {limits.min_tau:g}); nothing was written. Leave"
            " this precision out, or allow more with --max-drift and --min-tau",
            precision=reranker.variant.precision,
            excess=max(1.0, found.max_difference / limits.max_difference),
        )
    return found


def _logits(reranker: Reranker, question: Question) -> Float32Array:
    try:
        return reranker.score([(question.query, passage) for passage in question.passages])
    except ScoreError as error:
        raise VerificationError(f"{error} ({question.query!r}); nothing was written") from error


def limits_for(precision: Precision, max_difference: float | None, min_tau: float | None) -> Limits:
    """Return a precision's limits, with the ones that a user gave instead; fp32 has to be exact whatever they are."""
    default = DEFAULT_LIMITS[precision]
    if precision == PRECISIONS[0]:
        return default
    return Limits(
        max_difference=default.max_difference if max_difference is None else max_difference,
        min_tau=default.min_tau if min_tau is None else min_tau,
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
