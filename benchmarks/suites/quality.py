"""The quality of a system's scores: their distance from PyTorch's in fp32, and the ranking if there are labels."""

from collections.abc import Sequence
from functools import partial
from statistics import fmean

import numpy as np

from benchmarks.harness.lab import Case, Lab, Measured
from rankrt.arrays import Float32Array
from rankrt_export.text.ranks import overlap, tau
from rankrt_export.text.texts import Question
from tiny_reranker.ranking import ndcg, reciprocal_rank

_TOP = 10


def cases(lab: Lab, system: str) -> list[Case]:
    """Return the only case: all questions."""
    return [Case(name=f"{len(_questions(lab))} questions", measure=partial(_measure, lab, system))]


def _measure(lab: Lab, system: str) -> Measured:
    questions = _questions(lab)
    workloads = [lab.source.of_question(question) for question in questions]
    theirs = lab.scores(lab.reference, workloads, batch_size=1)
    ours = theirs if system == lab.reference else lab.scores(system, workloads)
    difference = np.abs(np.concatenate(ours) - np.concatenate(theirs))
    pairs = list(zip(ours, theirs, strict=True))
    return Measured(
        size={
            "n_questions": len(questions),
            "n_pairs": len(difference),
            "n_tokens": sum(one.n_tokens for one in workloads),
        },
        metrics={
            "max_drift": float(difference.max()),
            "mean_drift": float(difference.mean()),
            "tau": fmean(tau(a, b) for a, b in pairs),
            "top_10_overlap": fmean(overlap(a, b, _TOP) for a, b in pairs),
            "ndcg_10": fmean(ndcg(labels) for labels in _rank_labels(questions, ours)),
            "mrr_10": fmean(reciprocal_rank(labels) for labels in _rank_labels(questions, ours)),
        },
    )


def _questions(lab: Lab) -> Sequence[Question]:
    """Return questions with right and wrong passages, spread over the whole text."""
    usable = [question for question in lab.source.texts.questions if question.pos and question.neg]
    n = min(len(usable), lab.settings.n_questions)
    return [usable[i * len(usable) // n] for i in range(n)]


def _rank_labels(questions: Sequence[Question], scores: Sequence[Float32Array]) -> list[list[int]]:
    """Return each question's labels, best score first. Of equals the irrelevant one is first, so a tie never helps."""
    ranked = []
    for question, of_one in zip(questions, scores, strict=True):
        labels = [1] * len(question.pos) + [0] * len(question.neg)
        ranked.append([label for _, label in sorted(zip(-of_one, labels, strict=True))])
    return ranked
