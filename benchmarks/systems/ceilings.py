"""The machine's own rates, which limit all systems: matrix products, the best of three libraries, and memory traffic.

A product that is repeated alone finds its weight in the caches. A model's weights come from memory, one after the
other. With 128 rows on two cores of a Zen 5, this costs a fifth of the rate in all three libraries. So both rates are
measured.
"""

import time
from collections.abc import Callable, Sequence
from functools import reduce
from operator import matmul
from statistics import median

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from rankrt.arrays import Float32Array

# Inner and outer sizes of the products in one layer of XLM-R-large, in their order; 24 layers have 1.2 GB of weights.
_LAYER = (*[(1024, 1024)] * 4, (1024, 4096), (4096, 1024))
_N_LAYERS = 24
# 268 MB an array: far beyond any cache.
_N_FLOATS = 64 << 20


class Products:
    """Products of rows with one weight after the other, each on the result of the last, by each library."""

    def __init__(self, shapes: Sequence[tuple[int, int]], n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        random = np.random.default_rng(0)
        # With this scale, values neither overflow nor become denormal numbers, which are slow.
        self._weights = [random.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5) for shape in shapes]
        self._torch_weights = [torch.from_numpy(weight) for weight in self._weights]
        self._session = _session(self._weights, n_threads)

    def rates(self, n_rows: int) -> list[float]:
        """Return the GFLOP/s of ONNX Runtime, PyTorch and numpy."""
        x = np.random.default_rng(1).standard_normal((n_rows, len(self._weights[0])), np.float32)
        calls: list[Callable[[], object]] = [
            lambda: self._session.run(None, {"x": x}),
            lambda: reduce(matmul, self._torch_weights, torch.from_numpy(x)),
            lambda: reduce(matmul, self._weights, x),
        ]
        n_operations = sum(2 * n_rows * weight.size for weight in self._weights)
        return [n_operations / _seconds(call) / 1e9 for call in calls]


class Sgemm:
    """Answers GFLOP/s instead of scores: each weight shape alone, the best of them for each library."""

    def __init__(self, model: str, n_threads: int) -> None:
        self._alone = [Products([shape], n_threads) for shape in sorted(set(_LAYER))]
        self.versions = _versions()

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        rates = [products.rates(max_length) for products in self._alone]
        return [max(rates_of_library) for rates_of_library in zip(*rates, strict=True)]


class SgemmFromMemory:
    """Answers GFLOP/s instead of scores: the products of a whole model, by each library."""

    def __init__(self, model: str, n_threads: int) -> None:
        self._model = Products(_LAYER * _N_LAYERS, n_threads)
        self.versions = _versions()

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        return self._model.rates(max_length)


class Bandwidth:
    """Answers GB/s instead of scores: STREAM's triad, two arrays read and one written."""

    def __init__(self, model: str, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        self._a, self._b, self._c = (torch.zeros(_N_FLOATS) for _ in range(3))
        self.versions = _versions()

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        return [12e-9 * _N_FLOATS / _seconds(lambda: torch.add(self._a, self._b, alpha=3.0, out=self._c))]


def _seconds(call: Callable[[], object]) -> float:
    """Return the median time of a call, over at least 3 calls and about half a second."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < 0.5:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times)


def _session(weights: Sequence[Float32Array], n_threads: int) -> onnxruntime.InferenceSession:
    graph = helper.make_graph(
        [helper.make_node("MatMul", [_name(i), f"w{i}"], [_name(i + 1)]) for i in range(len(weights))],
        "products",
        [helper.make_tensor_value_info(_name(0), TensorProto.FLOAT, [None, len(weights[0])])],
        [helper.make_tensor_value_info(_name(len(weights)), TensorProto.FLOAT, [None, weights[-1].shape[1]])],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _name(index: int) -> str:
    return f"x{index}" if index else "x"


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
