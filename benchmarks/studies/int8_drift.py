"""The cost of int8 in scores and rankings: rankrt and ONNX Runtime's own dynamic quantization, on the same text.

    python -m benchmarks.studies.int8_drift --data ../shared/data --questions 20 [NAME=]CHECKPOINT ...

The questions are in twelve languages, or in those that are named, with BM25's candidates, and the models were not
trained on them. Everything is compared with fp32. `quantize_dynamic` gets the graph of torch.export, one row at a
time, and those of its settings that drift least. Prints one table. A model has the name of its folder unless another is
given. The last line on standard output is the record as JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic
from tqdm import tqdm

from benchmarks.records.record import describe_machine
from rankrt import Reranker
from rankrt.arrays import Float32Array
from rankrt.artifact.source import Hub
from rankrt.text.pairs import Pair
from rankrt_export.architectures.traced import trace
from rankrt_export.checkpoint.checkpoint import open_checkpoint
from rankrt_export.errors import VerificationError
from rankrt_export.pipeline import Options, export
from rankrt_export.text.ranks import tau
from rankrt_finetune.reports.tables import Table
from tiny_reranker.corpus import XQUAD_LANGUAGES, Question, questions_of
from tiny_reranker.evaluation import labels_by_score
from tiny_reranker.ranking import ndcg

# The default limits of `rankrt export` for int8, and no limits.
METHODS = {
    "rankrt, all layers": Options(precisions=["int8"], max_difference=1e9, min_tau=-1.0),
    "rankrt, default limits": Options(precisions=["int8"]),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to compute a model, compared with fp32. int8_share is of the multiply-adds of its linear layers."""

    model: str
    method: str
    int8_share: float
    max_drift: float
    mean_drift: float
    tau: float
    ndcg: float
    ndcg_fp32: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Questions and all their (query, passage) pairs, question by question."""

    questions: Sequence[Question]
    pairs: Sequence[Pair]

    def by_question(self, scores: Float32Array) -> list[Float32Array]:
        ends = np.cumsum([len(question.candidates) for question in self.questions])
        return np.split(scores, ends[:-1])


def main() -> None:
    options = _options()
    text = read_text(options.data, options.questions, options.languages)
    rows = [row for name, checkpoint in options.checkpoints for row in compare_methods(name, checkpoint, text)]
    print(table([asdict(row) for row in rows]).markdown())
    record = {
        "benchmark": "int8_drift",
        "n_pairs": len(text.pairs),
        "machine": msgspec.to_builtins(describe_machine()),
        "versions": {"onnxruntime": onnxruntime.__version__},
        "rows": [asdict(row) for row in rows],
    }
    print(json.dumps(record))


def read_text(folder: Path, n_questions: int, languages: Sequence[str]) -> Text:
    """Read the first held-out questions of each language."""
    pools = [pool for pool in questions_of("held_out", folder) if pool.language in languages]
    chosen = [(pool, question) for pool in pools for question in pool.questions[:n_questions]]
    pairs = [(question.text, pool.passages[c]) for pool, question in chosen for c in question.candidates]
    return Text(questions=[question for _, question in chosen], pairs=pairs)


def compare_methods(model: str, checkpoint: Path, text: Text) -> Iterator[Row]:
    """Yield a row for each way to compute a checkpoint in int8; `model` is its name in them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export(str(checkpoint), folder / "fp32", Options(is_verified=False))
        with Reranker.load(folder / "fp32", precision="fp32", truncation="longest_first", prepare=False) as reranker:
            reference = reranker.score(text.pairs)
            encoded = reranker.encode(text.pairs)
        ids = [encoded.row(i)[None].astype(np.int64) for i in range(encoded.n_rows)]
        for i, (method, options) in enumerate(METHODS.items()):
            for row in _rankrt(checkpoint, folder / f"int8-{i}", method, options, reference, text):
                yield replace(row, model=model)
        yield replace(_quantize_dynamic(checkpoint, folder, ids, reference, text), model=model)


def _rankrt(
    checkpoint: Path, folder: Path, method: str, options: Options, reference: Float32Array, text: Text
) -> Iterator[Row]:
    """Yield a row for each graph of our int8. If the export refuses it, print the reason and yield none."""
    try:
        artifact = export(str(checkpoint), folder, options)
    except VerificationError as error:
        tqdm.write(f"{checkpoint.name}, {method}: {error}")
        return
    for variant in artifact.manifest.variants:
        assert variant.quantization is not None
        with Reranker.load(
            folder,
            precision="int8",
            instruction_set=variant.instruction_set,
            truncation="longest_first",
            prepare=False,
        ) as reranker:
            scores = reranker.score(text.pairs)
        share = variant.quantization.int8_share
        yield _compare(checkpoint.name, f"{method}, {variant.instruction_set}", share, scores, reference, text)


def _quantize_dynamic(
    checkpoint: Path, folder: Path, ids: Sequence[np.ndarray], reference: Float32Array, text: Text
) -> Row:
    """Return the row of the settings with the least mean drift."""
    trace(open_checkpoint(str(checkpoint), Hub()), folder / "traced.onnx")
    rows = []
    for per_channel, reduce_range, kind in product((True, False), (True, False), (QuantType.QInt8, QuantType.QUInt8)):
        target = folder / "dynamic.onnx"
        options: dict[str, Any] = {"per_channel": per_channel, "reduce_range": reduce_range, "weight_type": kind}
        quantize_dynamic(folder / "traced.onnx", target, use_external_data_format=True, **options)
        session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
        found = [session.run(None, {"input_ids": row})[0].item() for row in tqdm(ids, leave=False)]
        method = f"quantize_dynamic, {kind.name}{', per channel' * per_channel}{', reduced range' * reduce_range}"
        rows.append(_compare(checkpoint.name, method, 1.0, np.array(found, np.float32), reference, text))
    return min(rows, key=lambda row: row.mean_drift)


def _compare(
    model: str, method: str, int8_share: float, scores: Float32Array, reference: Float32Array, text: Text
) -> Row:
    drift = np.abs(scores - reference)
    pairs = list(zip(text.by_question(scores), text.by_question(reference), strict=True))
    return Row(
        model=model,
        method=method,
        int8_share=round(int8_share, 4),
        max_drift=round(float(drift.max()), 4),
        mean_drift=round(float(drift.mean()), 5),
        tau=round(fmean(tau(a, b) for a, b in pairs), 4),
        ndcg=round(_mean_ndcg(text, scores), 4),
        ndcg_fp32=round(_mean_ndcg(text, reference), 4),
    )


def _mean_ndcg(text: Text, scores: Float32Array) -> float:
    of_questions = zip(text.questions, text.by_question(scores), strict=True)
    return fmean(ndcg(labels_by_score(question, found.tolist())) for question, found in of_questions)


def table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return a record's rows as a table. The rankings of untrained models are left out."""
    heading = ["model", "int8 by", "of multiply-adds", "drift, mean", "largest", "tau", "nDCG@10 (fp32)"]
    return Table(heading=heading, rows=[_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> list[str]:
    ndcg = f"{row['ndcg']:.3f} ({row['ndcg_fp32']:.3f})" if row["ndcg_fp32"] > 0.5 else "untrained"
    drift = [f"{row['mean_drift']:.3f}", f"{row['max_drift']:.2f}", f"{row['tau']:.3f}"]
    return [row["model"], row["method"], f"{row['int8_share']:.0%}", *drift, ndcg]


def _named(argument: str) -> tuple[str, Path]:
    name, _, folder = argument.rpartition("=")
    return name or Path(folder).name, Path(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=_named, nargs="+", metavar="[NAME=]CHECKPOINT")
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder that holds xquad/ (tiny_reranker/corpus.py)"
    )
    parser.add_argument("--questions", type=int, default=20, help="of each language (default %(default)s)")
    parser.add_argument(
        "--languages", nargs="+", choices=XQUAD_LANGUAGES, default=XQUAD_LANGUAGES, help="by default all"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
