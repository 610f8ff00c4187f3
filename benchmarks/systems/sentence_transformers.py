"""sentence-transformers' CrossEncoder as shipped: its own batch size, sorting and padding."""

from collections.abc import Sequence

import sentence_transformers
import torch
from sentence_transformers import CrossEncoder


class AsShipped:
    def __init__(self, model: str, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        self._model = CrossEncoder(model, device="cpu", model_kwargs={"dtype": torch.float32})
        self.versions = {"sentence-transformers": sentence_transformers.__version__, "torch": torch.__version__}

    def score(self, query: str, passages: Sequence[str], max_length: int) -> list[float]:
        self._model.max_length = max_length
        pairs = [(query, passage) for passage in passages]
        scores: list[float] = self._model.predict(
            pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False
        ).tolist()
        return scores
