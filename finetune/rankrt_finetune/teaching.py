"""A teacher's scores for examples: the logits of any artifact, block by block."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rankrt import Reranker
from rankrt.artifact.manifest import sha256_of
from rankrt_finetune.data.examples import Example, read_examples
from rankrt_finetune.resuming import write_blocks

# Examples of a block, some 1,000 pairs with 15 negatives each: enough for the planner to put rows of one length side
# by side, few enough that an interrupted process loses seconds.
_BLOCK_EXAMPLES = 64


def teach(
    source: Path, teacher: Reranker, out: Path, *, on_progress: Callable[[int], object] = lambda n_examples: None
) -> None:
    """Write the examples of a file with the teacher's scores in pos_scores and neg_scores.

    `on_progress` is called with the number of examples that were scored, or that an earlier process had scored. Raises
    InputError, with the line, for what is not an example.
    """

    def make(n_blocks: int, folder: Path) -> Iterator[Sequence[str]]:
        examples = read_examples(source)
        on_progress(sum(1 for _ in islice(examples, n_blocks * _BLOCK_EXAMPLES)))
        while block := list(islice(examples, _BLOCK_EXAMPLES)):
            yield [example.line() for example in with_scores(block, teacher)]
            on_progress(len(block))

    write_blocks(
        out,
        made_from={"input": sha256_of(source), "teacher": identity(teacher)},
        block_size=_BLOCK_EXAMPLES,
        make=make,
    )


def with_scores(examples: Sequence[Example], teacher: Reranker) -> list[Example]:
    """Return the examples with the teacher's logits. All their pairs are scored in one call."""
    pairs = [(example.query, passage) for example in examples for passage in example.passages]
    logits = iter(teacher.evaluate(pairs).logits.tolist())
    return [example.with_scores(list(islice(logits, len(example.passages)))) for example in examples]


def identity(reranker: Reranker) -> dict[str, Any]:
    """Return what a reranker's scores depend on."""
    return {
        "artifact": sha256_of(reranker.artifact.folder / "rankrt.json"),
        "variant": reranker.variant.name,
        "rules": str(reranker.rules),
        "cutoff_layer": reranker.cutoff_layer,
    }
