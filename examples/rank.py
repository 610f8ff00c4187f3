"""Rank passages for a query, score pairs, and read what a ranking says beside its scores.

python examples/rank.py ./bge-m3
"""

import sys

from rankrt import Reranker

QUERY = "what is a panda?"
PASSAGES = [
    "Paris is the capital of France.",
    "The giant panda is a bear that lives in the mountains of central China and eats bamboo.",
    "Pandas is a library for data analysis in Python.",
]


def main(model: str) -> None:
    with Reranker.load(model) as reranker:
        ranking = reranker.rank(QUERY, PASSAGES, top_n=2, normalize=True)
        for hit in ranking:
            print(f"{hit.score:.4f}  passage {hit.index}  {hit.document}")
        print(f"{ranking.query_truncated=}, cut documents: {[hit.index for hit in ranking if hit.truncated]}")

        # Logits, in the order of the pairs. They are float32, and the same in every batch.
        logits = reranker.score([(QUERY, passage) for passage in PASSAGES])
        print("logits:", " ".join(f"{logit:.3f}" for logit in logits))


if __name__ == "__main__":
    main(*sys.argv[1:])
