"""How well a model ranks the held-out examples while it is trained: nDCG@10 and the reciprocal rank.

A model that gives all passages one score is the worst there is, so a negative with the score of a positive counts as
ranked above it. The measures are those of ir-measures.
"""

from collections.abc import Sequence
from typing import Any

import ir_measures
import numpy as np
from ir_measures import RR, nDCG
from sentence_transformers.base.evaluation import BaseEvaluator
from torch.nn import Identity

from rankrt_finetune.data.examples import Example

NDCG, MRR = "ndcg@10", "mrr@10"
_MEASURES = {NDCG: nDCG @ 10, MRR: RR @ 10}


def quality(labels: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the means over queries, of the labels and scores of their passages."""
    qrels, run = {}, {}
    for query, (of_labels, of_scores) in enumerate(zip(labels, scores, strict=True)):
        # Places in the order, in the stead of scores: what libraries do with equal scores differs.
        order = np.lexsort((np.asarray(of_labels), -np.asarray(of_scores)))
        qrels[str(query)] = {str(passage): int(label) for passage, label in enumerate(of_labels)}
        run[str(query)] = {str(passage): -float(place) for place, passage in enumerate(order)}
    found = ir_measures.calc_aggregate(list(_MEASURES.values()), qrels, run)
    return {name: float(found[measure]) for name, measure in _MEASURES.items()}


class Evaluator(BaseEvaluator):
    """Scores the held-out pairs with the model in training, as the Trainer asks."""

    def __init__(self, examples: Sequence[Example], batch_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._labels = [example.labels for example in examples]
        self._pairs = [(example.query, passage) for example in examples for passage in example.passages]
        self._batch_size = batch_size

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Return the quality of the model as it is."""
        logits = iter(
            model.predict(
                self._pairs, batch_size=self._batch_size, activation_fn=Identity(), show_progress_bar=False
            ).tolist()
        )
        return quality(self._labels, [[next(logits) for _ in labels] for labels in self._labels])
