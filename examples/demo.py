"""The demo: export the tiny model, rerank passages in several languages, compare scores and speed with PyTorch.

python -m examples.demo
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from rankrt import Reranker
from rankrt.artifact.describe import describe
from rankrt.artifact.source import Hub
from rankrt_export.checkpoint.checkpoint import open_checkpoint
from rankrt_export.pipeline import Options, export
from rankrt_export.reference.pytorch import load_model
from rankrt_export.text.texts import sample

CHECKPOINT = Path(__file__).resolve().parents[1] / "tiny_reranker" / "checkpoint"
_N_ROUNDS = 15
_N_LANGUAGES, _N_SHOWN = 13, 2


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="rankrt-demo-") as folder:
        print(f"1. Export {CHECKPOINT.name}, every variant compared with PyTorch before it is written\n")
        artifact = export(str(CHECKPOINT), Path(folder) / "tiny", Options(precisions=["fp32", "fp16"]))
        print(describe(artifact))
        with Reranker.load(artifact.folder, precision="fp32") as reranker:
            rank_everything(reranker)
            compare_with_pytorch(reranker)
    return 0


def rank_everything(reranker: Reranker) -> None:
    """Print the best passages for the sample's question in each language."""
    print("\n2. Rerank: one question in each language over eight passages in it\n")
    n_right = 0
    for question in sample().questions[:_N_LANGUAGES]:
        hits = reranker.rank(question.query, sorted(question.passages), top_n=_N_SHOWN)
        n_right += hits[0].document in question.pos
        print(question.query)
        for hit in hits:
            mark = "*" if hit.document in question.pos else " "
            print(f"  {hit.score:8.3f} {mark} {hit.document[:90]}")
    print(f"\n* the right passage: first in {n_right} of {_N_LANGUAGES} languages")


def compare_with_pytorch(reranker: Reranker) -> None:
    """Print the largest difference in logits, and the time of one call, each system in turn."""
    import torch

    torch.set_num_threads(reranker.n_threads)
    model = load_model(open_checkpoint(str(CHECKPOINT), Hub()))
    pairs = [pair for pair in sample().pairs if len(pair[1]) < 1000]
    encoded = reranker.encode(pairs)
    rows = [torch.tensor(encoded.row(i)[None].astype(np.int64)) for i in range(encoded.n_rows)]

    def ours() -> list[float]:
        scores: list[float] = reranker.score(pairs).tolist()
        return scores

    def theirs() -> list[float]:
        with torch.inference_mode():
            return [model(row).logits[0, 0].item() for row in rows]

    difference = np.abs(np.array(ours()) - np.array(theirs())).max()
    seconds = _in_turn([ours, theirs])
    print(f"\n3. Beside PyTorch, {len(pairs)} pairs, {reranker.n_threads} threads\n")
    print(f"largest difference in logits     {difference:.1e}")
    print(f"rankrt, tokenization included    {median(seconds[0]) * 1e3:6.1f} ms")
    print(f"PyTorch, row by row, tokenized   {median(seconds[1]) * 1e3:6.1f} ms")
    ratio = median(b / a for a, b in zip(*seconds, strict=True))
    print(f"PyTorch takes {ratio:.1f} times as long here; for models of real size see the README")


def _in_turn(calls: list[Callable[[], list[float]]]) -> list[list[float]]:
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(_N_ROUNDS):
        for call, times in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
