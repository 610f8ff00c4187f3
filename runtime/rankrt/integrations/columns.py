"""Pairs in columns, as engines for large data hold them, and their scores as one more column. Knows no engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankrt.arrays import Float32Array
from rankrt.errors import InputError
from rankrt.options import check_flag, check_text
from rankrt.reranker import Reranker
from rankrt.text.pairs import Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class PairColumns:
    """Which columns hold the texts of pairs, which one gets their scores, and what the scores are.

    normalize   scores are the sigmoid of logits
    calibrated  scores are probabilities, by the artifact's calibration
    """

    query_column: str = "query"
    passage_column: str = "passage"
    score_column: str = "score"
    normalize: bool = False
    calibrated: bool = False

    def __post_init__(self) -> None:
        """Refuse names that are not text, and the same name twice."""
        names = {name: getattr(self, name) for name in ("query_column", "passage_column", "score_column")}
        for name, column in names.items():
            check_text(name, column)
        if len(set(names.values())) < len(names):
            raise InputError(
                f"{', '.join(f'{name}={column!r}' for name, column in names.items())}; expected three names"
            )
        check_flag("normalize", self.normalize)
        check_flag("calibrated", self.calibrated)

    def check(self, there: Sequence[str]) -> None:
        """Raise InputError unless the columns of the texts are there, and that of the scores is not."""
        has = f"the columns are {', '.join(map(repr, there)) or 'none'}"
        for option in ("query_column", "passage_column"):
            if (column := getattr(self, option)) not in there:
                raise InputError(f"there is no column {column!r}; {has}. Name the right one with {option}")
        if self.score_column in there:
            raise InputError(f"there is a column {self.score_column!r} already; name another with score_column. {has}")

    def scores(self, reranker: Reranker, queries: Sequence[Any], passages: Sequence[Any]) -> Float32Array:
        """Return the scores of rows, shape (n_rows,). Raises InputError for a row without text, by its number."""
        pairs: list[Pair] = list(zip(queries, passages, strict=True))
        for number, pair in enumerate(pairs):
            for column, text in zip((self.query_column, self.passage_column), pair, strict=True):
                if not isinstance(text, str):
                    raise InputError(
                        f"column {column!r} holds {type(text).__name__} in row {number} of a batch, not text; drop such"
                        " rows, or fill them"
                    )
        return reranker.score(pairs, normalize=self.normalize, calibrated=self.calibrated)

    def added(self, reranker: Reranker, batch: Any) -> Any:
        """Return a batch with the column of scores: a dict of arrays, a frame of pandas or a table of Arrow."""
        names = list(batch.column_names if hasattr(batch, "column_names") else batch.keys())
        self.check(names)
        queries, passages = (_listed(batch[name]) for name in (self.query_column, self.passage_column))
        scores = self.scores(reranker, queries, passages)
        if isinstance(batch, Mapping):
            return {**batch, self.score_column: scores}
        if hasattr(batch, "append_column"):
            return batch.append_column(self.score_column, [scores])
        return batch.assign(**{self.score_column: scores})


def _listed(column: Any) -> list[Any]:
    """Return the values of a column of numpy, pandas or Arrow."""
    found: list[Any] = column.to_pylist() if hasattr(column, "to_pylist") else list(column)
    return found
