"""PyTerrier's interface over rankrt: a transformer that scores the documents of each query."""

from typing import Any

from rankrt.errors import InputError
from rankrt.integrations.frameworks import framework, loaded
from rankrt.reranker import Reranker

with framework("pyterrier", least="1.1", extra="pyterrier"):
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]
    import pyterrier as pt


class RankrtReRanker(pt.Transformer):
    """Replaces the score and rank of each row by those of its query and text. Scores are logits, or their sigmoid."""

    def __init__(
        self, model: str | Reranker, *, text_field: str = "text", normalize: bool = False, **load_options: Any
    ) -> None:
        """Take a loaded reranker, or load the model of a folder or a hub id, with the options of `Reranker.load`.

        `text_field` is the column with the documents' texts.
        """
        self.reranker = loaded(model, load_options)
        self.text_field = text_field
        self.normalize = normalize

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Return the rows with their new score and rank. Needs the columns qid, docno, query and that of the texts."""
        pt.validate.result_frame(inp, extra_columns=["query", self.text_field], context=self)
        queries, texts = inp["query"].tolist(), inp[self.text_field].tolist()
        self._check_texts(inp, "query", queries)
        self._check_texts(inp, self.text_field, texts)
        scores = self.reranker.score(list(zip(queries, texts, strict=True)), normalize=self.normalize)
        ranked = inp.drop(columns=["score", "rank"], errors="ignore").assign(score=scores.astype("float64"))
        return pt.model.add_ranks(ranked, single_query=len(set(inp["qid"])) == 1)

    def __repr__(self) -> str:
        return f"RankrtReRanker({self.reranker!r})"

    def _check_texts(self, inp: pd.DataFrame, column: str, values: list[object]) -> None:
        """Raise InputError for a row without a text, which a missing document leaves there."""
        for number, value in enumerate(values):
            if not isinstance(value, str):
                row = inp.iloc[number]
                raise InputError(
                    f"{column} of qid {row['qid']!r}, docno {row['docno']!r} is {type(value).__name__}, not text;"
                    " get the texts with pt.text.get_text, or drop such rows"
                )
