"""Every variant against the PyTorch model, on text: the same ids in, logits compared.

The reference runs each row alone and without padding, in fp32, through transformers. The rows that it sees are the
checkpoint's own tokenizer's, so a wrong template is found here as well as a wrong graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from rankrt.arrays import Float32Array
from rankrt.artifact import PRECISIONS, Example, Precision, Verification
from rankrt.errors import ScoreError
from rankrt.reranker import Reranker
from rankrt_export.checkpoint import Checkpoint
from rankrt_export.errors import VerificationError
from rankrt_export.pytorch import load_model
from rankrt_export.texts import Question, Texts

TOP_K = 3
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far a variant may be from the PyTorch model: in logits at most, in Kendall's tau per query at least."""

    max_difference: float
    min_tau: float


# fp32 differs by the order of summation only: 5.5e-5 was measured with 24 random layers of XLM-R-large, which amplify
# more than trained ones. fp16 rounds weights to 11 bits: 0.071 there, 0.035 with a small trained model.
DEFAULT_LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(max_difference=1e-4, min_tau=0.99),
    "fp16": Limits(max_difference=0.25, min_tau=0.9),
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
    model = load_model(checkpoint)
    logits = np.empty(len(rows), np.float32)
    with torch.inference_mode():
        for i, row in enumerate(rows):
            logits[i] = model(**{key: torch.tensor([ids]) for key, ids in row.items()}).logits[0, 0].item()
            progress(1)
    made_by = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return Reference(texts=texts, logits=logits, made_by=made_by)


def reference_rows(checkpoint: Checkpoint, reranker: Reranker, texts: Texts) -> list[dict[str, list[int]]]:
    """Tokenize all pairs with the checkpoint's own tokenizer, which has to give the ids that the reranker gives.

    Raises VerificationError with the first pair for which it does not.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    # A list of pairs, because transformers takes a lone ("query", "") for a text without a second one.
    theirs = tokenizer(texts.pairs, truncation="longest_first", max_length=reranker.rules.max_length)
    ours = reranker.encode(texts.pairs)
    for i, pair in enumerate(texts.pairs):
        if theirs["input_ids"][i] != ours.row(i).tolist():
            raise VerificationError(
                f"tokenizer.json and transformers do not agree: of {pair} transformers makes {theirs['input_ids'][i]},"
                f" the artifact {ours.row(i).tolist()}; nothing was written"
            )
    return [{key: values[i] for key, values in theirs.items()} for i in range(len(texts.pairs))]


def verify(reranker: Reranker, against: Reference, limits: Limits, progress: Progress) -> Verification:
    """Compare a variant's logits with the reference's, question by question.

    Raises VerificationError, with the figures, if the variant is outside its limits or answers what is no number.
    """
    name, blocks = reranker.variant.name, []
    for question in against.texts.questions:
        blocks.append(_logits(reranker, question))
        progress(len(question.passages))
    found = compare(np.concatenate(blocks), against)
    if found.max_difference > limits.max_difference or found.min_tau < limits.min_tau:
        raise VerificationError(
            f"{name} differs from PyTorch by up to {found.max_difference:.2g} (limit {limits.max_difference:g}), and"
            f" Kendall's tau is {found.min_tau:.3f} for the worst query (limit {limits.min_tau:g}); nothing was"
            " written. Leave this precision out, or allow more with --max-drift and --min-tau"
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
    ours, theirs = (_by_query(values, against.texts) for values in (logits, against.logits))
    taus = [tau(a, b) for a, b in zip(ours, theirs, strict=True)]
    return Verification(
        reference=against.made_by,
        text_sha256=against.texts.sha256,
        n_queries=len(against.texts.questions),
        n_pairs=len(logits),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        min_tau=min(taus),
        mean_tau=float(np.mean(taus)),
        top_k=TOP_K,
        top_k_overlap=float(np.mean([overlap(a, b, TOP_K) for a, b in zip(ours, theirs, strict=True)])),
    )


def tau(ours: Float32Array, theirs: Float32Array) -> float:
    """Return Kendall's tau-b of two orders; 1 where one of them says nothing (a single passage, or all equal)."""
    value = kendalltau(ours, theirs).statistic if len(ours) > 1 else 1.0
    return 1.0 if np.isnan(value) else float(value)


def overlap(ours: Float32Array, theirs: Float32Array, k: int) -> float:
    """Return the share of the k best that two score lists have in common."""
    best_of_ours, best_of_theirs = (set(np.argsort(-scores, kind="stable")[:k].tolist()) for scores in (ours, theirs))
    return len(best_of_ours & best_of_theirs) / len(best_of_theirs)


def _by_query(values: Float32Array, texts: Texts) -> Sequence[Float32Array]:
    ends = np.cumsum([len(question.passages) for question in texts.questions])
    return np.split(values, ends[:-1])
