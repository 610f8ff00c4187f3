"""Weights in fp32 as panels: what a data file holds, and what graphs of other operators make of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from rankrt.arrays import Float32Array
from rankrt.backends.session import open_session, session_options
from rankrt_export.graph.data_files import DataFiles
from rankrt_export.graph.graph import FLOAT, Graph
from rankrt_export.precision.float32 import Float32, Multiply, gemm_columns, matmul_columns

pytestmark = pytest.mark.export
SIZES = [(64, 32), (24, 70), (33, 64), (5, 3), (1, 1)]


class OneWeight:
    """A checkpoint of one tensor, which comes in blocks of the given heights."""

    def __init__(self, weight: Float32Array, heights: Sequence[int]) -> None:
        self._weight = weight
        self._ends = np.cumsum(heights)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weight.shape

    def blocks(self, name: str) -> Iterator[Float32Array]:
        yield from np.split(self._weight, self._ends)


def random(*shape: int) -> Float32Array:
    return np.random.RandomState(0).randn(*shape).astype(np.float32)


@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
def test_a_data_file_has_the_panels_whatever_blocks_the_weights_come_in(tmp_path: Path, n_in: int, n_out: int):
    weight = random(n_out, n_in)
    filled = np.zeros((-(-n_out // 32) * 32, n_in), np.float32)
    filled[:n_out] = weight
    expected = filled.reshape(-1, 32, n_in).transpose(0, 2, 1)
    for heights in ([], [1, 2], [32], [31, 2]):
        folder = tmp_path / str(heights)
        folder.mkdir()
        with DataFiles(folder) as data:
            write(folder, data, OneWeight(weight, heights), Float32())
        assert (folder / "layers.fp32.data").read_bytes() == expected.tobytes()


def write(folder: Path, data: DataFiles, weight: OneWeight, arithmetic: Float32) -> None:
    graph = Graph(weights=weight, data=data, precision=arithmetic)  # type: ignore[arg-type]
    x = graph.input("x", FLOAT, ["n_tokens", weight.shape("")[1]])
    graph.save(folder / "graph.onnx", y=graph.product(x, "layer"))


@pytest.mark.parametrize("multiply", [gemm_columns, matmul_columns])
@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
def test_other_operators_multiply_by_the_same_weights(tmp_path: Path, n_in: int, n_out: int, multiply: Multiply):
    weight, x = random(n_out, n_in), random(7, n_in)
    with DataFiles(tmp_path) as data:
        write(tmp_path, data, OneWeight(weight, []), Float32(multiply=multiply))
    (found,) = open_session(tmp_path / "graph.onnx", session_options(1)).run(None, {"x": x})
    # Sums of up to 64 products in another order.
    np.testing.assert_allclose(found, x @ weight.T, atol=1e-5)


def test_a_graph_undoes_panels_by_plain_operators(tmp_path: Path):
    """OpenVINO and TensorRT read such graphs, too."""
    with DataFiles(tmp_path) as data:
        write(tmp_path, data, OneWeight(random(70, 24), []), Float32())
    nodes = onnx.load(tmp_path / "graph.onnx", load_external_data=False).graph.node
    assert [(node.domain, node.op_type) for node in nodes] == [("", "Slice"), ("", "Concat"), ("", "Gemm")]
