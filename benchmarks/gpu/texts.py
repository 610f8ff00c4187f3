"""Text in, scores out: with tokenization and planning, beside sentence-transformers as people run it."""

import random
from collections.abc import Iterator
from functools import partial

from benchmarks.gpu.lines import RANKRT, Line, median_s
from benchmarks.gpu.subject import Subject
from rankrt import Reranker
from rankrt.text.pairs import Pair
from rankrt_export.text.texts import sample

# A tenth of them for PyTorch in fp32, which takes several times as long.
_N_PAIRS, _FP32_SHARE = 1500, 10
_MOST_TOKENS = 512
# The sample's passages have 50 tokens. As many together make the lengths of passages and of long chunks.
_MOST_PASSAGES = 8
# The batch of CrossEncoder.predict, and one that a large GPU likes better.
_BATCHES = (32, 256)


def texts(subject: Subject) -> Iterator[Line]:
    """Yield pairs a second of rankrt and of sentence-transformers, on the same text in 13 languages."""
    pairs = pairs_of(_N_PAIRS if subject.size.seconds >= 1 else 20)
    seconds = subject.size.seconds
    with Reranker.load(subject.artifact.folder, device="cuda", precision="fp16", max_length=_MOST_TOKENS) as reranker:
        yield _rate(RANKRT, len(pairs), median_s(lambda: reranker.score(pairs), seconds))
    yield from _sentence_transformers(subject, pairs)


def pairs_of(n_pairs: int) -> list[Pair]:
    """Return queries with passages, each put together from a few of the sample's."""
    chance, questions = random.Random(0), sample().questions
    passages = [passage for question in questions for passage in question.passages]

    def passage() -> str:
        return " ".join(chance.choices(passages, k=chance.randint(1, _MOST_PASSAGES)))

    return [(chance.choice(questions).query, passage()) for _ in range(n_pairs)]


def _sentence_transformers(subject: Subject, pairs: list[Pair]) -> Iterator[Line]:
    from sentence_transformers import CrossEncoder

    few = pairs[: max(1, len(pairs) // _FP32_SHARE)]
    checkpoint, seconds = str(subject.checkpoint), subject.size.seconds
    for precision, batches, asked in (("float16", _BATCHES, pairs), ("float32", _BATCHES[:1], few)):
        model = CrossEncoder(checkpoint, max_length=_MOST_TOKENS, model_kwargs={"dtype": precision})
        for n_rows in batches:
            predict = partial(model.predict, asked, batch_size=n_rows, show_progress_bar=False)
            took = median_s(predict, seconds)
            yield _rate(f"sentence-transformers {precision}, batches of {n_rows}", len(asked), took)


def _rate(name: str, n_pairs: int, seconds: float) -> Line:
    return Line(name=name, figures={"pairs_per_s": n_pairs / seconds, "pairs": n_pairs})
