"""The machine's own rate at single-precision matrix products: the best of three libraries, a ceiling for others."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

# Inner and outer sizes of XLM-R-large's layers.
_SHAPES = ((1024, 1024), (1024, 4096), (4096, 1024))


class Sgemm:
    """Answers GFLOP/s instead of scores: products of `max_length` rows with each weight shape, by each library."""

    def __init__(self, model: str, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        self._n_threads = n_threads
        self.versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}

    def score(self, query: str, passages: Sequence[str], max_length: int) -> list[float]:
        rates = [self._rates(max_length, *shape) for shape in _SHAPES]
        return [max(rates_of_library) for rates_of_library in zip(*rates, strict=True)]

    def _rates(self, m: int, k: int, n: int) -> list[float]:
        x, weight = (np.random.default_rng(0).standard_normal(shape, np.float32) for shape in ((m, k), (k, n)))
        torch_x, torch_weight = torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(weight.T))
        session = _session(weight, self._n_threads)
        products: list[Callable[[], object]] = [
            lambda: session.run(None, {"x": x}),
            lambda: torch.nn.functional.linear(torch_x, torch_weight),
            lambda: x @ weight,
        ]
        return [2e-9 * m * k * n / _seconds(product) for product in products]


def _seconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(15):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times)


def _session(weight: np.ndarray, n_threads: int) -> onnxruntime.InferenceSession:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, weight.shape[1]])],
        [numpy_helper.from_array(weight, "weight")],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
