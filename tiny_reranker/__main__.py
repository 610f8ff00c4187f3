"""Train the tiny reranker and measure it: results go to standard output, progress to standard error."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tiny_reranker import evaluation
from tiny_reranker.batches import Sampling, sample_batches, tokenized
from tiny_reranker.construction import N_LAYERS, Pieces, construct
from tiny_reranker.corpus import questions_of, training_pools
from tiny_reranker.files import load_checkpoint, save_checkpoint
from tiny_reranker.training import Schedule, train
from tiny_reranker.vocabulary import count_pieces, learn_vocabulary, rarities, vocabulary_texts
from tiny_reranker.widening import widen

# Sums differ with the number of threads, and training multiplies the difference. On a busy machine one thread is as
# fast as two, because products this small wait for each other more than they compute.
_N_THREADS = 1
_N_STEPS = 3000


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the arguments."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.run(options)


def run_train(options: argparse.Namespace) -> None:
    """Learn the pieces, construct the weights, fine-tune them, and write the checkpoint."""
    pools, sampling = training_pools(options.data), Sampling()
    schedule = Schedule(n_steps=options.steps, learning_rate=options.rate)
    tokenizer = learn_vocabulary(list(vocabulary_texts(pools)))
    counts = count_pieces(tokenizer, (text for pool in pools for text in pool.passages.values()))
    token_pools = [tokenized(pool, tokenizer, sampling) for pool in pools]
    batches = sample_batches(token_pools, sampling, rarities(counts), seed=options.seed)
    model = construct(Pieces.of(tokenizer, counts), next(batches), seed=options.seed)
    if options.copies > 1 or options.layers > N_LAYERS:
        model = widen(model, n_copies=options.copies, n_layers=options.layers, seed=options.seed)
    train(model, batches, schedule)
    save_checkpoint(model, tokenizer, options.out)


def run_evaluate(options: argparse.Namespace) -> None:
    """Print the quality of a checkpoint as a table, and write the numbers to a file if one is named."""
    pools = questions_of(options.part, options.data)
    model, tokenizer = load_checkpoint(options.checkpoint)
    quality = evaluation.as_json(evaluation.evaluate(model, tokenizer, pools))
    sys.stdout.write(evaluation.table(quality))
    if options.json:
        record = {"part": options.part, "quality": quality}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tiny_reranker", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    training = commands.add_parser("train", help=run_train.__doc__)
    training.add_argument("--data", type=Path, required=True, help="the folder of data sets (see corpus.py)")
    training.add_argument("--out", type=Path, required=True, help="the folder for the checkpoint")
    training.add_argument("--steps", type=int, default=_N_STEPS, help="of fine-tuning (default %(default)s)")
    training.add_argument("--rate", type=float, default=1e-3, help="of learning (default %(default)s)")
    training.add_argument("--copies", type=int, default=1, help="times the width (default %(default)s)")
    training.add_argument("--layers", type=int, default=N_LAYERS, help="of the network (default %(default)s)")
    training.add_argument("--threads", type=int, default=_N_THREADS, help="(default %(default)s)")
    training.add_argument("--seed", type=int, default=0, help="of weights and batches (default %(default)s)")
    training.set_defaults(run=run_train)
    evaluating = commands.add_parser("evaluate", help=run_evaluate.__doc__)
    evaluating.add_argument("checkpoint", type=Path, help="the checkpoint's folder")
    evaluating.add_argument("--data", type=Path, required=True, help="the folder of data sets (see corpus.py)")
    evaluating.add_argument("--part", choices=("dev", "held_out"), default="held_out", help="which articles")
    evaluating.add_argument("--json", type=Path, help="write the numbers to this file as well")
    evaluating.set_defaults(run=run_evaluate, threads=_N_THREADS)
    return parser


if __name__ == "__main__":
    main()
