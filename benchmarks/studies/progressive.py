"""Ranking that stops early: its savings and losses over margins, on questions that nothing was fitted to.

    python -m benchmarks.studies.progressive --checkpoint ./layerwise --data ../shared/data --out ./artifact

The checkpoint (`python -m tiny_reranker.layerwise` makes one) is exported with an exit after every layer that has a
head. Its margins are measured on questions of development articles with BM25's candidates. Then held-out questions rank
BM25's candidates among other paragraphs of the language. All scores are computed once. They give each policy's share of
the layers' work, and the overlap of its first ten with the full ranking's. One policy also runs for real. The last line
on standard output is the record as JSON.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from rankrt import Reranker
from rankrt.arrays import Float32Array, Int64Array
from rankrt.llm.exits import Keep
from rankrt.llm.progressive import Policy, Progressive, Score, run
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import Texts, parse
from rankrt_finetune.reports.tables import Table
from tiny_reranker.corpus import Part, questions_of
from tiny_reranker.ranking import ndcg

TOP_N = 10
_POLICIES: tuple[Progressive, ...] = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0, "exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A question with passages. Some of them answer it."""

    query: str
    passages: list[str]
    labels: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A task's scores at every exit, (n_exits, n_passages), and the tokens of its rows, (n_passages,)."""

    task: Task
    scores: Float32Array
    lengths: Int64Array


def main() -> None:
    options = _options()
    if not options.out.exists():
        start, last = _layers(options.checkpoint)
        dev = list(tasks(options.data, "dev", options.dev_queries, n_others=0))
        exported = Options(texts=_as_texts(dev), cutoff_layers=range(start, last + 1))
        export(str(options.checkpoint), options.out, exported)
    with Reranker.load(options.out, precision="fp32") as reranker:
        known = [_known(reranker, task) for task in tasks(options.data, "held_out", options.queries, options.others)]
        rows = [_row(reranker, known, progressive) for progressive in _POLICIES]
        _check_one(reranker, known[0])
        layers = [end.layer for end in reranker.variant.exits]
        n_measured = reranker.variant.verification.n_queries if reranker.variant.verification else 0
    record = {
        "benchmark": "progressive",
        "exits": layers,
        "n_queries": len(known),
        "n_passages": len(known[0].lengths),
        "top_n": TOP_N,
        "n_queries_of_margins": n_measured,
        "ndcg": [round(float(np.mean([_ndcg(k.task, k.scores[i]) for k in known])), 4) for i in range(len(layers))],
        "overlap": [round(_mean_overlap(known, i), 4) for i in range(len(layers))],
        "policies": rows,
    }
    print(table(record))
    print(json.dumps(record))


def tasks(folder: Path, part: Part, n_queries: int, n_others: int) -> Iterator[Task]:
    """Yield so many questions of each language, with BM25's candidates and other paragraphs at random."""
    for pool in questions_of(part, folder):
        random = Random(0)
        for question in random.sample(pool.questions, n_queries):
            others = [i for i in pool.passages if i not in question.candidates]
            chosen = [*question.candidates, *random.sample(others, min(n_others, len(others)))]
            labels = [int(i in question.relevant) for i in chosen]
            yield Task(query=question.text, passages=[pool.passages[i] for i in chosen], labels=labels)


def _known(reranker: Reranker, task: Task) -> Known:
    pairs = [(task.query, passage) for passage in task.passages]
    exits = [end.layer for end in reranker.variant.exits]
    lengths = reranker.encode(pairs).lengths
    return Known(task=task, scores=reranker.score(pairs, cutoff_layers=exits), lengths=lengths)


def _row(reranker: Reranker, known: list[Known], progressive: Progressive) -> dict[str, Any]:
    policy = Policy.of(reranker.variant, reranker.variant.exits[-1].layer, progressive)
    found = [(k, run(_by_stages(k.scores), k.lengths, TOP_N, policy)) for k in known]
    ended = [np.where(p.exits == len(policy.layers) - 1, p.scores, -np.inf).astype(np.float32) for _, p in found]
    work = 1 - np.mean([p.share_saved for _, p in found])
    overlaps = [_overlap(scores, k.scores[-1]) for (k, _), scores in zip(found, ended, strict=True)]
    return {
        "progressive": progressive,
        "overlap": round(float(np.mean(overlaps)), 4),
        "least_overlap": min(overlaps),
        "work": round(float(work), 4),
        "checked": round(float(np.mean([p.n_checked for _, p in found])), 2),
        "ndcg": round(float(np.mean([_ndcg(k.task, s) for k, s in zip(known, ended, strict=True)])), 4),
    }


def _by_stages(scores: Float32Array) -> Score:
    """Return what scores rows at exits from scores that are known, (n_exits, n_rows)."""

    def score(rows: Int64Array, layers: Sequence[int], keep: Keep | None) -> Float32Array:
        going = rows
        for exit_ in range(len(layers)):
            if keep is not None and len(going):
                going = keep(exit_, going, scores[exit_, going])
        last: Float32Array = scores[-1, rows]
        return last

    return score


def _check_one(reranker: Reranker, known: Known) -> None:
    """Run one task for real, and check that hits and work follow from the scores."""
    ranking = reranker.rank(known.task.query, known.task.passages, top_n=TOP_N, progressive=True)
    policy = Policy.of(reranker.variant, reranker.variant.exits[-1].layer, True)
    expected = run(_by_stages(known.scores), known.lengths, TOP_N, policy)
    assert ranking.progress is not None
    assert ranking.progress.n_documents == expected.n_rows
    assert {hit.index: hit.score for hit in ranking}.items() <= dict(enumerate(known.scores[-1].tolist())).items()


def _overlap(ours: Float32Array, theirs: Float32Array) -> float:
    best = [set(np.argsort(-scores, kind="stable")[:TOP_N].tolist()) for scores in (ours, theirs)]
    return len(best[0] & best[1]) / len(best[1])


def _ndcg(task: Task, scores: Float32Array) -> float:
    order = np.argsort(-scores, kind="stable")
    return ndcg([task.labels[i] for i in order])


def _mean_overlap(known: list[Known], exit_: int) -> float:
    """Return the share of the full ranking's first ten that an exit alone has."""
    return float(np.mean([_overlap(k.scores[exit_], k.scores[-1]) for k in known]))


def table(record: Mapping[str, Any]) -> str:
    """Return the cost and the overlap of each policy, and of stopping all rows at an exit, as Markdown."""
    head = ["margins", f"overlap of the top {record['top_n']}", "least", "layers' work", "nDCG@10"]
    titles = ["exact" if row["progressive"] == "exact" else f"{row['progressive']:g}" for row in record["policies"]]
    rows = [
        [title, f"{row['overlap']:.4f}", f"{row['least_overlap']:.1f}", f"{row['work']:.1%}", f"{row['ndcg']:.3f}"]
        for title, row in zip(titles, record["policies"], strict=True)
    ]
    last = record["exits"][-1]
    for layer, overlap, ndcg_ in zip(record["exits"], record["overlap"], record["ndcg"], strict=True):
        title = "none, all layers" if layer == last else f"none, all stop after layer {layer}"
        rows.append([title, f"{overlap:.4f}", "", f"{layer / last:.0%}", f"{ndcg_:.3f}"])
    return Table(heading=head, rows=rows).markdown()


def _as_texts(found: list[Task]) -> Texts:
    lines = []
    for task in found:
        sides = {"pos": 1, "neg": 0}
        texts = {
            name: [p for p, label in zip(task.passages, task.labels, strict=True) if label == side]
            for name, side in sides.items()
        }
        lines.append(json.dumps({"query": task.query, **texts}))
    return parse("\n".join(lines).encode(), "development questions")


def _layers(checkpoint: Path) -> tuple[int, int]:
    config = json.loads((checkpoint / "config.json").read_text())
    return int(config["start_layer"]), int(config["num_hidden_layers"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder of data sets (see tiny_reranker/corpus.py)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the artifact; made if it is not there")
    parser.add_argument("--dev-queries", type=int, default=8, help="of each language, to measure margins on")
    parser.add_argument("--queries", type=int, default=8, help="of each language, to rank for")
    parser.add_argument("--others", type=int, default=80, help="paragraphs besides BM25's candidates")
    return parser.parse_args()


if __name__ == "__main__":
    main()
