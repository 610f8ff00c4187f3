"""Code that was written for FlagEmbedding, with its import changed; then the same with rankrt's own interface.

python examples/from_flagembedding.py BAAI/bge-reranker-v2-m3

The checkpoint is exported into the cache on first use, which needs the export extra.
"""

import sys

from rankrt import Reranker
from rankrt.compat import FlagReranker  # was: from FlagEmbedding import FlagReranker

PAIRS = [("what is a panda?", "hi"), ("what is a panda?", "The giant panda is a bear that lives in China.")]


def main(checkpoint: str) -> None:
    flag = FlagReranker(checkpoint, use_fp16=False)
    scores = flag.compute_score(PAIRS, normalize=True)
    print("FlagEmbedding's interface:", [round(score, 4) for score in scores])

    # An artifact loads at once and needs no PyTorch: rankrt export CHECKPOINT ./bge-m3
    with Reranker.load(checkpoint, precision="fp32") as reranker:
        print("rankrt's own:", [round(float(score), 4) for score in reranker.score(PAIRS, normalize=True)])


if __name__ == "__main__":
    main(*sys.argv[1:])
