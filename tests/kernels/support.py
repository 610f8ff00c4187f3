"""The operators of the library as functions of arrays, and what they should compute: numpy's, from the definitions.

`RANKRT_TEST_LIBRARY` names another build of the library than the one that is installed.
"""

import ctypes
import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from rankrt.backends.session import keep_after_fork
from rankrt.kernels import LIBRARY

TESTED_LIBRARY = Path(os.environ.get("RANKRT_TEST_LIBRARY") or LIBRARY)
Array = NDArray[Any]
Attributes = Mapping[str, int | float]

INPUTS = {
    "Places": ("row_offsets",),
    "RoundTokens": ("x", "factors"),
    "Linear": ("bytes", "token_scales", "panels", "scales", "sums", "bias"),
    "FloatLinear": ("x", "float_panels", "bias"),
    "Attention": ("queries", "keys", "values", "row_offsets"),
    "FloatAttention": ("queries", "keys", "values", "row_offsets"),
    "AddNorm": ("x", "y", "weight", "bias"),
}
OUTPUTS = {"RoundTokens": ("bytes", "scales")}
TYPES = {
    "row_offsets": TensorProto.INT32,
    "panels": TensorProto.INT8,
    "sums": TensorProto.INT32,
    "bytes": TensorProto.UINT8,
    "places": TensorProto.INT32,
}
PANEL = 32
SMALLEST_STEP = 1e-30


def why_not() -> str | None:
    """Return why the library cannot be tested here; None if it can."""
    if not TESTED_LIBRARY.exists():
        return f"the kernels are not built: there is no {TESTED_LIBRARY.name}"
    try:
        library = ctypes.CDLL(str(TESTED_LIBRARY))
    except OSError as error:
        return f"the kernels are for another system: {error}"
    library.rankrt_instruction_set.restype = ctypes.c_char_p
    return None if library.rankrt_instruction_set() else "this processor runs none of the kernels"


def run(name: str, attributes: Attributes | None = None, threads: int = 1, /, **inputs: Array) -> Array:
    """Run an operator, and return its output; of RoundTokens, the bytes with their padding."""
    return run_all(name, attributes, threads, **inputs)[0]


def run_all(name: str, attributes: Attributes | None = None, threads: int = 1, /, **inputs: Array) -> list[Array]:
    """Run an operator, and return all of its outputs."""
    given = tuple(key for key in INPUTS[name] if key in inputs)
    assert set(given) == set(inputs)
    outputs: list[Array] = session_of(name, given, tuple((attributes or {}).items()), threads).run(None, dict(inputs))
    return outputs


@cache
def session_of(
    name: str, given: tuple[str, ...], attributes: tuple[tuple[str, int | float], ...], threads: int
) -> onnxruntime.InferenceSession:
    """Return a session over a graph of one node; inputs that are not given are left out."""
    outputs = OUTPUTS.get(name, ("places" if name == "Places" else "output",))
    inputs = [key if key in given else "" for key in INPUTS[name]]
    while not inputs[-1]:
        inputs.pop()
    graph = helper.make_graph(
        [helper.make_node(name, inputs, [f"{output}_out" for output in outputs], domain="rankrt", **dict(attributes))],
        name,
        [helper.make_tensor_value_info(key, TYPES.get(key, TensorProto.FLOAT), None) for key in given],
        [helper.make_tensor_value_info(f"{key}_out", TYPES.get(key, TensorProto.FLOAT), None) for key in outputs],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("rankrt", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # runs that fail are tested by their exception
    options.register_custom_ops_library(str(TESTED_LIBRARY))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    keep_after_fork(session)  # other tests of the process fork it, and a child has no threads to end
    return session


def offsets_of(lengths: list[int]) -> NDArray[np.int32]:
    """Return where rows of these lengths begin, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def layer(weights: NDArray[np.int8], scales: NDArray[np.float32]) -> dict[str, Any]:
    """Return the inputs of Linear that are made of weights (n_in, n_out) and their scales (n_out,)."""
    n_in, n_out = weights.shape
    padded = np.zeros((-(-n_in // 4) * 4, -(-n_out // PANEL) * PANEL), np.int8)
    padded[:n_in, :n_out] = weights
    panels = padded.reshape(-1, 4, padded.shape[1] // PANEL, PANEL).transpose(2, 0, 3, 1)
    return {
        "panels": np.ascontiguousarray(panels),
        "scales": np.pad(scales, (0, padded.shape[1] - n_out)),
        "sums": padded.sum(0, dtype=np.int32),
    }


def float_panels(weights: Array) -> Array:
    """Return the panels (n_panels, n_in, 32) of FloatLinear that are made of weights (n_in, n_out)."""
    n_in, n_out = weights.shape
    padded = np.pad(weights, ((0, 0), (0, -n_out % PANEL)))
    return np.ascontiguousarray(padded.reshape(n_in, -1, PANEL).transpose(1, 0, 2))


def linear(
    levels: NDArray[np.int64], token_scales: Array, weights: Array, scales: Array, bias: Array | None
) -> NDArray[np.float64]:
    """Return the product of inputs, as bytes less their zero point, with weights, in float64."""
    exact = (levels @ weights.astype(np.int64)).astype(np.float64)
    product = exact * scales.astype(np.float64) * token_scales.astype(np.float64)[:, None]
    return product if bias is None else product + bias


def gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x times the normal distribution's share below it."""
    shares = [0.5 * math.erfc(-value / math.sqrt(2)) for value in x.ravel()]
    return np.asarray(x * np.array(shares).reshape(x.shape))


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the shares of each row of scores."""
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def float_attention(q: Array, k: Array, v: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return attention of one row and head in float64, and how far float32 may be from it.

    A sum of n products, rounded n times, is off by n * 2^-24 of the sum of their magnitudes at most. A score that is
    off changes its share by a factor. A share is off by a few steps of its own, and by its exponent's rounding.
    """
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    size, n_keys = q.shape[1], len(k)
    scores = q @ k.T / math.sqrt(size)
    off = np.abs(q) @ np.abs(k).T / math.sqrt(size) * (size + 4) * 2**-24
    shares = softmax(scores)
    factors = 2 * off.max(1, keepdims=True) + (scores.max(1, keepdims=True) - scores + 8) * 2**-22
    return shares @ v, (shares * factors) @ np.abs(v) * 2 + shares @ np.abs(v) * n_keys * 2**-23


def attention(q: Array, k: Array, v: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return attention of one row and head in float64, and how far integers of 16 bits may be from it.

    The bound follows the roundings. A score is off by half a step of each feature. Each share is then off by a factor,
    and by less than 1/32766 of the largest. Shares that are off by a part of their sum move the mean by twice that part
    of the largest value. A value is off by half a step of 1/1023. Float32 adds its own 2^-24 a step, of which there are
    few. No step is below SMALLEST_STEP.
    """
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    size, n_keys = q.shape[1], len(k)
    scores = q @ k.T / math.sqrt(size)
    q_steps, k_steps = (
        np.maximum(np.abs(vectors).max(1, keepdims=True) * math.sqrt(size) / 32767, SMALLEST_STEP) for vectors in (q, k)
    )
    off = np.abs(q).sum(1, keepdims=True) @ k_steps.T + q_steps @ np.abs(k).sum(1, keepdims=True).T
    off = (off / 2 + size * q_steps @ k_steps.T / 4) / math.sqrt(size) + np.abs(scores) * 2**-20
    worst = off.max(1)
    factor = np.expm1(2 * worst) + 1e-5
    lost = n_keys / 32766 / np.exp(scores - scores.max(1, keepdims=True)).sum(1) * np.exp(2 * worst)
    largest = np.abs(v).max(0)
    bound = 2 * (factor + lost)[:, None] * largest + np.maximum(largest / 1023, SMALLEST_STEP) / 2 + largest * 1e-5
    return softmax(scores) @ v, bound
