"""A reranker for one field, from a general embedding model: COVID-QA, 1,380 questions about 98 articles.

    python -m benchmarks.studies.finetuning prepare COVID_QA.json FOLDER
    python -m benchmarks.studies.finetuning compare FOLDER [NAME=]ARTIFACT ... --embedder CHECKPOINT -o record.json
    python -m benchmarks.studies.finetuning trainers FOLDER CHECKPOINT --flagembedding PYTHON

`prepare` writes corpus.jsonl with passages of at most 50 words, and questions of three parts, each with the passage
that has its answer: train.jsonl, dev.jsonl and test.jsonl. A part has whole articles, so what is held out was written
by other people about other things. `rankrt mine` adds candidates. `compare` ranks those of test.mined.jsonl by BM25, by
the embedder and by each precision of each artifact, and prints a table. The interval is a bootstrap over the questions.
`trainers` trains
a small encoder by `rankrt finetune` and by FlagEmbedding's own trainer, on the same examples with the same settings, by
several seeds. PYTHON is the interpreter of an environment with FlagEmbedding. docs/finetuning.md has all commands.
"""

import argparse
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder

from rankrt import Reranker
from rankrt.artifact.manifest import open_artifact
from rankrt_finetune.data.corpus import read_corpus
from rankrt_finetune.data.examples import Example, read_examples
from rankrt_finetune.data.queries import digest
from rankrt_finetune.mining.bm25 import Bm25
from rankrt_finetune.mining.embedder import Embedder
from rankrt_finetune.training.quality import MRR, NDCG, Evaluator, quality

_WORDS_OF_PASSAGE = 50
# Of ten articles, by the hash of their number.
_PARTS = ("test", "test", "dev", *["train"] * 7)
# So many questions are taken of these parts, those with the lowest hashes.
_N_HELD_OUT = {"dev": 50, "test": 100}
_N_SAMPLES = 1000
# The same settings by the names of rankrt and of FlagEmbedding.
_SETTINGS = {
    "epochs": ("1", "num_train_epochs"),
    "batch-size": ("8", "per_device_train_batch_size"),
    "group-size": ("4", "train_group_size"),
    "learning-rate": ("3e-4", "learning_rate"),
    "warmup": ("0.1", "warmup_ratio"),
    "weight-decay": ("0", "weight_decay"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    preparing = commands.add_parser("prepare")
    preparing.add_argument("source", type=Path)
    preparing.add_argument("folder", type=Path)
    preparing.add_argument("--questions", type=int, default=400, help="of the training part, at most")
    preparing.add_argument("--also", type=Path, action="append", default=[], help="another file in SQuAD's form")
    preparing.set_defaults(run=lambda options: prepare(options.source, options.folder, options.questions, options.also))
    comparing = commands.add_parser("compare")
    comparing.add_argument("folder", type=Path)
    comparing.add_argument("artifacts", nargs="*")
    comparing.add_argument("--embedder")
    comparing.add_argument("-o", "--output", type=Path, help="the file of the record")
    comparing.set_defaults(
        run=lambda options: compare(options.folder, options.artifacts, options.embedder, options.output)
    )
    training = commands.add_parser("trainers")
    training.add_argument("folder", type=Path)
    training.add_argument("checkpoint")
    training.add_argument("--flagembedding", required=True)
    training.add_argument("--seeds", type=int, default=3)
    training.set_defaults(
        run=lambda options: compare_trainers(options.folder, options.checkpoint, options.flagembedding, options.seeds)
    )
    options = parser.parse_args()
    options.run(options)


def prepare(source: Path, folder: Path, n_train: int, also: Sequence[Path]) -> None:
    """Write the corpus and the questions of each part; a question that stands there twice is taken once."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus: list[dict[str, Any]] = []
    seen: set[int] = set()
    examples: dict[str, list[dict[str, Any]]] = {part: [] for part in (*dict.fromkeys(_PARTS), "also")}
    for path in (source, *also):
        for name, paragraph in paragraphs(path):
            texts, questions = cut(name, paragraph)
            corpus += texts
            part = _PARTS[digest(name) % len(_PARTS)] if path == source else "also"
            for question in questions:
                if digest(question["query"]) not in seen:
                    seen.add(digest(question["query"]))
                    examples[part].append(question)
    for part, n_questions in ({"train": n_train} | _N_HELD_OUT).items():
        examples[part] = sorted(examples[part], key=lambda row: digest(row["query"]))[:n_questions]
    examples["train"] += examples.pop("also")
    for name, rows in {"corpus": corpus, **examples}.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name}.jsonl: {len(rows)}")


def paragraphs(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the paragraphs of a file in SQuAD's form, each with a name of its own."""
    for i, article in enumerate(json.loads(source.read_text(encoding="utf-8"))["data"]):
        for j, paragraph in enumerate(article["paragraphs"]):
            yield str(paragraph.get("document_id", f"{source.stem}-{i}-{j}")), paragraph


def cut(name: str, paragraph: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a paragraph's passages, and its questions, each with the passage that has the answer."""
    spans = list(passages(paragraph["context"]))
    texts = [" ".join(paragraph["context"][start:stop].split()) for start, stop in spans]
    questions = []
    for question in paragraph["qas"]:
        begin = question["answers"][0]["answer_start"]
        answer = next(i for i, (start, stop) in enumerate(spans) if start <= begin < stop)
        query = " ".join(question["question"].split())
        questions.append({"query": query, "pos": [texts[answer]], "neg": [], "article": name})
    return [{"id": f"{name}-{i}", "text": text} for i, text in enumerate(texts)], questions


def passages(text: str) -> Iterator[tuple[int, int]]:
    """Yield the beginning and the end of passages of whole sentences, which together are the text."""
    start = 0
    for sentence in re.finditer(r".+?(?:[.!?]\s+|\n+|\Z)", text, re.DOTALL):
        if len(text[start : sentence.end()].split()) > _WORDS_OF_PASSAGE and sentence.start() > start:
            yield start, sentence.start()
            start = sentence.start()
    yield start, len(text) + 1


def compare(folder: Path, artifacts: Sequence[str], embedder: str | None, output: Path | None) -> None:
    """Print the quality of each way to order the candidates of the test questions, and write it as JSON."""
    corpus, examples = read_corpus(folder / "corpus.jsonl"), list(read_examples(folder / "test.mined.jsonl"))
    ways = [("BM25", by_bm25(corpus, examples))]
    if embedder is not None:
        search = Embedder(embedder, [corpus[0]], folder / "first.npy")
        ways.append(("the embedder, cosine", [search.similarity(e.query, e.passages).tolist() for e in examples]))
    for artifact in artifacts:
        name, _, path = artifact.rpartition("=")
        for precision in dict.fromkeys(variant.precision for variant in open_artifact(Path(path)).manifest.variants):
            with Reranker.load(path, precision=precision) as reranker:
                title = f"{name or Path(path).name}, {precision}"
                ways.append((title, [reranker.score([(e.query, p) for p in e.passages]).tolist() for e in examples]))
    labels = [example.labels for example in examples]
    print(f"| {len(examples)} questions | nDCG@10 | 95 % interval | MRR@10 |\n|---|---|---|---|")
    found = []
    for way, scores in ways:
        reached, (low, high) = quality(labels, scores), interval(labels, scores)
        found.append({"way": way, **reached, "interval": [low, high]})
        print(f"| {way} | {reached[NDCG]:.3f} | {low:.3f} to {high:.3f} | {reached[MRR]:.3f} |")
    if output is not None:
        record = {"benchmark": "finetuning", "n_questions": len(examples), "n_passages": len(corpus), "found": found}
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def by_bm25(corpus: Sequence[str], examples: Sequence[Example]) -> list[list[float]]:
    """Return scores that order candidates as BM25 does; a passage that it does not find is last."""
    places = {digest(text): i for i, text in enumerate(corpus)}
    found = Bm25(corpus).find([example.query for example in examples], len(corpus))
    return [
        [-float(rank.get(places[digest(passage)], len(corpus))) for passage in example.passages]
        for example, rank in zip(
            examples, [{int(p): i for i, p in enumerate(one.passages)} for one in found], strict=True
        )
    ]


def interval(labels: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the 2.5th and the 97.5th percentile of nDCG@10 over samples of the questions, drawn with replacement."""
    each: Callable[[int], float] = lambda i: quality([labels[i]], [scores[i]])[NDCG]  # noqa: E731
    values = np.array([each(i) for i in range(len(labels))])
    drawn = np.random.default_rng(0).choice(values, (_N_SAMPLES, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def compare_trainers(folder: Path, checkpoint: str, flagembedding: str, n_seeds: int) -> None:
    """Print the held-out quality of the checkpoint, and of what each trainer makes of it by each seed."""
    examples = list(read_examples(folder / "test.mined.jsonl"))

    def measured(model: str) -> float:
        encoder = CrossEncoder(model, max_length=160, local_files_only=True)
        evaluate: Callable[[Any], dict[str, float]] = Evaluator(examples, 64)
        return evaluate(encoder)[NDCG]

    print(f"| {len(examples)} questions | nDCG@10 | by seed |\n|---|---|---|")
    print(f"| before | {measured(checkpoint):.4f} | |")
    train, named = str(folder / "train.mined.jsonl"), with_class(Path(checkpoint), folder / "named")
    trainers: dict[str, Callable[[str, str, int], list[str]]] = {
        "rankrt": partial(rankrt, train),
        "FlagEmbedding": lambda _, out, seed: theirs(flagembedding, train, named, out, seed),
    }
    for name, run in trainers.items():
        found = []
        for seed in range(n_seeds):
            out = folder / f"{name}-{seed}"
            subprocess.run(run(checkpoint, str(out), seed), check=True, stdout=subprocess.DEVNULL)
            for file in Path(checkpoint).glob("tokenizer*"):
                shutil.copy(file, out)
            found.append(measured(str(out)))
        print(f"| {name} | {fmean(found):.4f} | {', '.join(f'{value:.4f}' for value in found)} |", flush=True)


def with_class(checkpoint: Path, folder: Path) -> str:
    """Copy a checkpoint with XLM-R's tokenizer class: of a nameless one FlagEmbedding leaves out special tokens."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "XLMRobertaTokenizerFast"}
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def rankrt(train: str, checkpoint: str, out: str, seed: int) -> list[str]:
    """Return the command of `rankrt finetune`."""
    settings = {key: value for key, (value, _) in _SETTINGS.items()}
    return ["rankrt", "finetune", checkpoint, train, "-o", out, "--seed", str(seed), "--max-length", "160"] + [
        word for key, value in settings.items() for word in (f"--{key}", value)
    ]


def theirs(python: str, train: str, checkpoint: str, out: str, seed: int) -> list[str]:
    """Return the command of FlagEmbedding. Its rows have query_max_len + passage_max_len tokens."""
    fixed = ["--query_max_len", "32", "--passage_max_len", "128", "--save_strategy", "no", "--report_to", "none"]
    return [
        *(python, "-m", "FlagEmbedding.finetune.reranker.encoder_only.base"),
        *("--model_name_or_path", checkpoint, "--train_data", train, "--output_dir", out, "--seed", str(seed)),
        *("--use_cpu", "True", "--dataloader_drop_last", "False", *fixed),
        *(word for value, key in _SETTINGS.values() for word in (f"--{key}", value)),
    ]


if __name__ == "__main__":
    main()
