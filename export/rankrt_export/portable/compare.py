"""A portable graph beside PyTorch: run by a stock ONNX Runtime on padded rows, as other programs will run it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rankrt.arrays import Float32Array, Int64Array
from rankrt.artifact.manifest import Verification
from rankrt.backends.batch import padded
from rankrt.backends.session import import_onnxruntime
from rankrt.host.cpu import this_machine
from rankrt_export.verify.rows import RowMaker
from rankrt_export.verify.verify import Reference, compare

# A query's passages are padded together, but not so many that memory grows with the text.
_MOST_ROWS = 8


def compare_graph(path: Path, rows: RowMaker, against: Reference, progress: Callable[[int], None]) -> Verification:
    """Return how far a graph's logits are from the reference's. NaN counts as infinitely far."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = this_machine().cores.n
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    blocks = []
    for question in against.texts.questions:
        blocks.append(_logits(session, rows, [(question.query, passage) for passage in question.passages]))
        progress(len(question.passages))
    logits = np.concatenate(blocks)
    return compare(np.where(np.isfinite(logits), logits, np.float32(np.inf)), against)


def _logits(session: Any, rows: RowMaker, pairs: list[tuple[str, str]]) -> Float32Array:
    encoded = rows.encode(pairs)
    declared, found = {node.name for node in session.get_inputs()}, []
    for start in range(0, len(pairs), _MOST_ROWS):
        feed = padded(encoded, np.arange(start, min(start + _MOST_ROWS, len(pairs))))
        arrays: dict[str, Int64Array] = {name: array.astype(np.int64) for name, array in feed.items()}
        lengths = arrays.pop("lengths")
        places = np.arange(arrays["input_ids"].shape[1])
        arrays["attention_mask"] = (places < lengths[:, None]).astype(np.int64)
        (logits,) = session.run(["logits"], {name: array for name, array in arrays.items() if name in declared})
        found.append(logits[:, 0])
    return np.concatenate(found)
