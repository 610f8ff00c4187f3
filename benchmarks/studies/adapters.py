"""What each adapter of rankrt.integrations adds to a call of 10 documents, beside the time that the model takes.

    python -m benchmarks.studies.adapters --artifact ./minilm -o benchmarks/results/adapters.json

An adapter's own time is that of a call whose ranking is ready, so that no model's time hides it. The share is that of a
call of `Reranker.rank` with the model, as processor time over its threads, which a busy machine stretches least. Each
is the least of its rounds. Frameworks that are not installed are left out.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rankrt import Ranking, Reranker
from rankrt.arrays import Float32Array
from rankrt.compat import CrossEncoder
from rankrt.host.cpu import this_machine
from rankrt.scoring import Scored
from rankrt_finetune.reports.tables import Table

QUERY = "Where do giant pandas live, and what do they eat?"
SENTENCE = "The giant panda is a bear of the mountains of central China, and number {} of them eats bamboo all day. "
PASSAGES = [SENTENCE.format(i) * 4 for i in range(10)]
PAIRS = [(QUERY, passage) for passage in PASSAGES]


class Ready(Reranker):
    """A reranker that has its answer already."""

    def __init__(self, reranker: Reranker) -> None:
        super().__init__(reranker._model, reranker.rules)
        self.ranking, self.scored = reranker.rank(QUERY, PASSAGES), reranker.evaluate(PAIRS)

    def rank(self, *args: Any, **options: Any) -> Ranking:
        return self.ranking

    def score(self, *args: Any, **options: Any) -> Float32Array:
        return self.scored.logits

    def evaluate(self, *args: Any, **options: Any) -> Scored:
        return self.scored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=500, help="of the adapters; a tenth of them of the model")
    parser.add_argument("-o", "--output", type=Path, help="the file of the record")
    options = parser.parse_args()
    with Reranker.load(options.artifact) as reranker:
        n_rounds = max(1, options.rounds // 10)
        model_s = _seconds(lambda: reranker.rank(QUERY, PASSAGES), n_rounds, time.process_time) / reranker.n_threads
        own_s = {name: _seconds(call, options.rounds) for name, call in _calls(Ready(reranker))}
        own_s["arank"] = asyncio.run(_seconds_of_waiting(reranker, options.rounds))
        machine = this_machine()
        record = {
            "benchmark": "adapters",
            "machine": {"processor": machine.processor, "n_threads": machine.cores.n},
            "model": {"name": options.artifact.name, "variant": reranker.variant.name},
            "n_documents": len(PASSAGES),
            "n_tokens": reranker.evaluate(PAIRS).n_tokens,
            "rank_ms": round(1e3 * model_s, 2),
            "adapters": {
                name: {"own_us": round(1e6 * seconds, 1), "share_percent": round(100 * seconds / model_s, 3)}
                for name, seconds in own_s.items()
            },
        }
    text = json.dumps(record, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(f"{text}\n")


def table(record: Mapping[str, Any]) -> Table:
    """Return the time of each adapter, and its share of the model's."""
    rows = [
        [name, f"{found['own_us']:.0f} us", f"{found['share_percent']:.2f} %"]
        for name, found in record["adapters"].items()
    ]
    return Table(heading=["adapter", "its own time", "share of the call"], rows=rows)


def _calls(ready: Ready) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield a call of each adapter whose framework is installed."""
    encoder = CrossEncoder.of(ready, activation_fn=lambda logits: logits)
    yield "sentence-transformers", lambda: encoder.rank(QUERY, PASSAGES)
    for make in (_langchain, _llama_index, _haystack, _pyterrier):
        try:
            yield make.__name__[1:].replace("_", "-"), make(ready)
        except ImportError as missing:
            print(f"left out: {missing}")


def _langchain(ready: Ready) -> Callable[[], object]:
    from langchain_core.documents import Document

    from rankrt.integrations.langchain import RankrtRerank

    compressor, documents = RankrtRerank(model=ready), [Document(page_content=passage) for passage in PASSAGES]
    return lambda: compressor.compress_documents(documents, QUERY)


def _llama_index(ready: Ready) -> Callable[[], object]:
    from llama_index.core.schema import NodeWithScore, TextNode

    from rankrt.integrations.llama_index import RankrtRerank

    postprocessor = RankrtRerank(model=ready)
    nodes = [NodeWithScore(node=TextNode(text=passage)) for passage in PASSAGES]
    return lambda: postprocessor.postprocess_nodes(nodes, query_str=QUERY)


def _haystack(ready: Ready) -> Callable[[], object]:
    from haystack import Document

    from rankrt.integrations.haystack import RankrtRanker

    ranker, documents = RankrtRanker(model="ready"), [Document(content=passage) for passage in PASSAGES]
    ranker._reranker = ready
    return lambda: ranker.run(query=QUERY, documents=documents)


def _pyterrier(ready: Ready) -> Callable[[], object]:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

    from rankrt.integrations.pyterrier import RankrtReRanker

    rows = [("q1", QUERY, str(i), passage, 0.0) for i, passage in enumerate(PASSAGES)]
    transformer = RankrtReRanker(ready)
    frame = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"])
    return lambda: transformer(frame)


def _seconds(call: Callable[[], object], n_rounds: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the least seconds of a call, by a clock."""
    taken = []
    for _ in range(n_rounds):
        started = clock()
        call()
        taken.append(clock() - started)
    return min(taken)


async def _seconds_of_waiting(reranker: Reranker, n_rounds: int) -> float:
    """Return the least seconds that an awaited call takes besides its work: into a thread and back."""
    taken = []
    for _ in range(n_rounds):
        started = time.perf_counter()
        await reranker._model.run(lambda: None)
        taken.append(time.perf_counter() - started)
    return min(taken)


if __name__ == "__main__":
    main()
