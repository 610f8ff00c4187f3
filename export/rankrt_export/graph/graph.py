"""The building blocks that every architecture is written in.

An architecture says *what* is computed. The precision decides how a weight is stored and multiplied, and the type of
states. The target decides the layout of rows, and the operators of attention and between the products. Hidden states
have their features last. The axes before are the target's: one flat sequence of all rows, unless it says otherwise.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass
from onnx_ir.tape import Tape

from rankrt.arrays import Float32Array, Int64Array
from rankrt.artifact.manifest import Layout
from rankrt_export.checkpoint.weights import Weights

OPSET, IR_VERSION = 21, 10
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
MICROSOFT = "com.microsoft"
# The domain of rankrt's own operators, which kernels/ computes and docs/artifact.md specifies.
RANKRT = "rankrt"
# Those that apply a GELU to what they return.
_APPLY_GELU = ("Linear", "FloatLinear")
# Norms, biases and heads are fp32 in every variant whose states are, so all of these share them.
COMMON_DATA = "common.data"
# The same in half precision, for variants whose states are.
COMMON_HALF_DATA = "common.fp16.data"


class Arithmetic(Protocol):
    """How the large weights are stored and multiplied. `states` is the type of hidden states between the blocks."""

    states: ir.DataType

    def linear(self, graph: "Graph", x: ir.Value, weight: str, bias: ir.Value | None) -> ir.Value:
        """Return x @ W.T + bias, where W, (n_out, n_in), is the weight of that name."""
        ...

    def lookup(self, graph: "Graph", ids: ir.Value, table: str) -> ir.Value:
        """Return the rows of a table, n_features for each id, in the type of states."""
        ...


class Data(Protocol):
    """Where the tensors go that are too large for the graph."""

    def tensor(
        self, file: str, key: str, dtype: np.dtype[Any], shape: Iterable[int], blocks: Callable[[], Iterable[Any]]
    ) -> ir.ExternalTensor:
        """Return a reference to a tensor of a file; `blocks` yields its content, in order, if it is not there yet."""
        ...


class Operators(Protocol):
    """How a model that sees whole rows is expressed for one target: the places of rows, and the operators it has.

    Layers and norms go by name, so that a target can compute a product and what follows it in one operator.
    """

    layout: Layout
    ids: ir.Value

    def positions(self, table: Float32Array, name: str) -> ir.Value:
        """Return for each token the vector of its place in its row, from a table of that name."""
        ...

    def token_types(self, table: Float32Array, name: str) -> ir.Value:
        """Return for each token the vector of its type, 0 or 1, from a table of that name: of query and passage."""
        ...

    def first_tokens(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's first token, (n_rows, n_features)."""
        ...

    def attention(
        self, queries: ir.Value, hidden: ir.Value, layers: tuple[str, str, str], *, n_heads: int, first_only: bool
    ) -> ir.Value:
        """Attend from `queries` to all tokens of their row, by query, key and value layers.

        `queries` are `hidden`, or the states of the first tokens if `first_only`; so is what is returned.
        """
        ...

    def add_norm(self, x: ir.Value, y: ir.Value, norm: str, epsilon: float) -> ir.Value:
        """Normalise x + y over the features."""
        ...

    def linear_add_norm(self, x: ir.Value, layer: str, y: ir.Value, norm: str, epsilon: float) -> ir.Value:
        """Normalise the layer's output for x, plus y."""
        ...

    def linear_gelu(self, x: ir.Value, layer: str) -> ir.Value:
        """Return the exact GELU of the layer's output for x."""
        ...


class RelativeOperators(Operators, Protocol):
    """How a model whose attention also sees the distance of two tokens is expressed for one target."""

    def relative_attention(
        self,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        tables: "DistanceTables",
        *,
        scale: float,
        first_only: bool,
    ) -> ir.Value:
        """Attend to all tokens of a row by products times `scale`, plus those with the vectors of distances.

        `query` has all tokens, or each row's first if `first_only`; so does what is returned.
        """
        ...


class RotaryOperators(Protocol):
    """How a model that sees whole rows, or windows of them, with rotary positions is expressed for one target.

    Sums of layers are float32 whatever the type of states is.
    """

    layout: Layout
    ids: ir.Value

    def token_types(self, table: Float32Array, name: str) -> ir.Value:
        """Return for each token the vector of its type, 0 or 1, from a table of that name: of query and passage."""
        ...

    def first_tokens(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's first token, (n_rows, n_features)."""
        ...

    def means(self, hidden: ir.Value) -> ir.Value:
        """Return the mean over each row's tokens, (n_rows, n_features), of float32."""
        ...

    def rotated(self, x: ir.Value, tables: "RotaryTables") -> ir.Value:
        """Turn the features of each head, (..., n_heads * size), by the token's position (halves, not pairs)."""
        ...

    def attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, *, reach: int | None, first_only: bool
    ) -> ir.Value:
        """Attend to the tokens of a row that are at most `reach` places away; None is to all.

        Returned are all tokens, or each row's first if `first_only`.
        """
        ...


class CausalOperators(Protocol):
    """How a segment of a causal model is expressed for one target: the places of its rows, and the operators it has.

    A segment's last layer computes only its outputs: all tokens if another segment follows, else those that the score
    is read from. Sums of layers are float32 whatever the type of states is. Norms take float32.

    States are (n_tokens, n_features) where all rows are one flat sequence, and (n_rows, longest, n_features) where
    they are a matrix. After the last layer they are (n_outputs, n_features) and (n_rows, 1, n_features).

    n_axes  the axes before the features: 1 for a flat sequence, 2 for a matrix
    states  what the segment starts from: ids, without the axis of features, or the states of the segment before
    """

    layout: Layout
    n_axes: int
    states: ir.Value

    def last_layer_queries(self, hidden: ir.Value) -> ir.Value:
        """Return of all tokens' states those that the last layer makes queries of: of its outputs at least."""
        ...

    def last_layer_outputs(self, x: ir.Value) -> ir.Value:
        """Return of all tokens' states those of the last layer's outputs."""
        ...

    def rotated(self, x: ir.Value, tables: "RotaryTables", *, n_heads: int, is_last_layer: bool) -> ir.Value:
        """Turn the features of each head, (..., n_heads * size), by the token's position (halves, not pairs).

        `x` is of all tokens, or of `last_layer_queries` if `is_last_layer`.
        """
        ...

    def attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, *, n_heads: int, is_last_layer: bool, window: int | None
    ) -> ir.Value:
        """Attend to each token itself and those before it in its row and the row's prefix.

        With a `window` a token sees so many tokens, itself counted. If `is_last_layer`, queries are those of
        `last_layer_queries`, and only the outputs are returned. Keys and values are always of all tokens.
        """
        ...

    def last_tokens(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's last token, (n_rows, n_features), of the last layer's outputs."""
        ...

    def rms_norm(self, x: ir.Value, name: str, scale: Float32Array, epsilon: float) -> ir.Value:
        """Divide float32 by its root mean square over the last axis, times a scale of that name; return states."""
        ...

    def silu(self, x: ir.Value) -> ir.Value:
        """Return x * sigmoid(x)."""
        ...

    def outputs(self) -> Mapping[str, ir.Value]:
        """Return what the segment hands to other runs, by name."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DistanceTables:
    """The vectors of distances of one layer.

    keys     (n_heads, n_vectors, size) what a query is multiplied with, in the place of a key; or None
    queries  the same for a key, in the place of a query
    buckets  (2 * n_positions - 1,) the place in them of each distance, a query's place less a key's, in rising order
    """

    keys: Float32Array | None
    queries: Float32Array | None
    buckets: Int64Array
    n_heads: int
    name: str


@dataclass(frozen=True, slots=True)
class RotaryTables:
    """The cosines and sines of each position's angles, (n_positions, head_size / 2)."""

    cosines: Float32Array
    sines: Float32Array
    name: str = "rope"

    @classmethod
    def of(
        cls, n_positions: int, head_size: int, base: float, name: str = "rope", *, factor: float = 1.0
    ) -> "RotaryTables":
        """Return the tables of all positions; angles in float32, as torch, with frequencies divided by a factor."""
        exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
        frequencies = np.float32(1) / np.power(np.float32(base), exponents) / np.float32(factor)
        angles = np.arange(n_positions, dtype=np.float32)[:, None] * frequencies
        return cls(np.cos(angles), np.sin(angles), name)

    def stored(self, graph: "Graph", dtype: ir.DataType = FLOAT) -> tuple[ir.Value, ir.Value]:
        """Return both as tensors of a graph."""
        tables = ((f"{self.name}.cosines", self.cosines), (f"{self.name}.sines", self.sines))
        cosines, sines = (graph.array(key, table, dtype) for key, table in tables)
        return cosines, sines


class Graph:
    """A graph under construction."""

    def __init__(self, *, weights: Weights, data: Data, precision: Arithmetic) -> None:
        self.weights = weights
        self.data = data
        self._precision = precision
        self._tape = Tape()
        self._inputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}
        self.data_files: set[str] = set()
        self._n_loops = 0

    # The blocks.

    def embedding(self, ids: ir.Value, table: str) -> ir.Value:
        """Return the vectors of tokens, (n_tokens, n_features)."""
        return self._precision.lookup(self, ids, table)

    def linear(self, x: ir.Value, name: str, *, precision: Arithmetic | None = None) -> ir.Value:
        """Return x @ W.T + b for the layer of that name."""
        chosen = precision or self._precision
        return chosen.linear(self, x, f"{name}.weight", self.vector(f"{name}.bias", chosen.states))

    def product(self, x: ir.Value, name: str) -> ir.Value:
        """Return x @ W.T for the layer of that name, without its bias if it has one."""
        return self._precision.linear(self, x, f"{name}.weight", None)

    def layer_norm(self, x: ir.Value, name: str, epsilon: float) -> ir.Value:
        """Normalise the last axis, in float32; not every norm has a bias."""
        vectors = [
            self.vector(f"{name}.{part}") for part in ("weight", "bias") if f"{name}.{part}" in self.weights.names
        ]
        return self.op("LayerNormalization", x, *vectors, axis=-1, epsilon=epsilon)

    def gelu(self, x: ir.Value) -> ir.Value:
        """Return the exact GELU of x; a kernel that makes x applies it, so then nothing else may read x."""
        node = x.producer()
        if node is None or node.domain != RANKRT or node.op_type not in _APPLY_GELU:
            return self.op("Gelu", x)
        node.attributes["gelu"] = ir.AttrInt64("gelu", 1)
        return x

    def bounded(self, x: ir.Value, cap: float) -> ir.Value:
        """Return cap * tanh(x / cap) of float32."""
        bound = self.scalar(np.float32(cap))
        return self.op("Mul", self.op("Tanh", self.op("Div", x, bound)), bound)

    @property
    def states(self) -> ir.DataType:
        """The type of hidden states."""
        return self._precision.states

    def as_float32(self, x: ir.Value) -> ir.Value:
        """Return hidden states in float32."""
        return x if self.states == FLOAT else self.op("Cast", x, to=FLOAT)

    def as_states(self, x: ir.Value) -> ir.Value:
        """Return float32 in the type of hidden states."""
        return x if self.states == FLOAT else self.op("Cast", x, to=self.states)

    # What blocks are made of.

    def op(self, type_: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Append a node with one output."""
        return self._tape.op(type_, inputs, attributes, domain=domain)

    def ops(
        self, type_: str, *inputs: ir.Value | None, n_outputs: int, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs."""
        return self._tape.op_multi_out(type_, inputs, attributes, num_outputs=n_outputs, domain=domain)

    def loop(self, n_turns: ir.Value, state: ir.Value, body: ir.Graph) -> ir.Value:
        """Append a Loop without a condition that carries one state; the body may use any value made before."""
        # Names that are unique in the whole graph. The rest of the graph is named without a look into the loop, and
        # ONNX Runtime refuses some graphs in which a name is given twice.
        values = [*body.inputs, *(output for node in body for output in node.outputs)]
        for i, value in enumerate(values):
            value.name = f"loop{self._n_loops}.{i}"
        self._n_loops += 1
        return self._tape.op("Loop", [n_turns, None, state], {"body": body})

    def input(self, name: str, dtype: ir.DataType, shape: Iterable[str | int]) -> ir.Value:
        """Declare an input of the graph."""
        value = ir.val(name, dtype, list(shape))
        self._inputs.append(value)
        return value

    def ints(self, *values: int) -> ir.Value:
        """Return a constant vector of int64."""
        return self.constant(f"ints{values}", np.array(values, np.int64))

    def int_scalar(self, value: int) -> ir.Value:
        """Return a constant int64 scalar."""
        return self.constant(f"int({value})", np.array(value, np.int64))

    def scalar(self, value: np.float32) -> ir.Value:
        """Return a constant float32 scalar."""
        return self.constant(f"float({value!r})", np.array(value, np.float32))

    def constant(self, key: str, content: npt.NDArray[Any]) -> ir.Value:
        """Return a small tensor that is kept in the graph itself."""
        if key not in self._initializers:
            self._initializers[key] = self._tape.initializer(ir.tensor(content, name=key), key)
        return self._initializers[key]

    def vector(self, name: str, dtype: ir.DataType = FLOAT) -> ir.Value:
        """Return a small weight, in float32 or in half precision."""
        return self._common(name, dtype, self.weights.shape(name), lambda: self.weights.blocks(name))

    def array(self, key: str, content: Float32Array, dtype: ir.DataType = FLOAT) -> ir.Value:
        """Return an array that was computed from weights, in float32 or in half precision."""
        return self._common(key, dtype, content.shape, lambda: [content])

    def _common(
        self, key: str, dtype: ir.DataType, shape: Iterable[int], blocks: Callable[[], Iterable[Any]]
    ) -> ir.Value:
        if dtype == FLOAT:
            return self.external(COMMON_DATA, key, np.float32, shape, blocks)
        return self.external(COMMON_HALF_DATA, f"{key}.float16", dtype.numpy(), shape, blocks)

    def external(
        self, file: str, key: str, dtype: npt.DTypeLike, shape: Iterable[int], blocks: Callable[[], Iterable[Any]]
    ) -> ir.Value:
        """Return a tensor of a data file, which `blocks` yields if it is not written yet."""
        if key not in self._initializers:
            tensor = self.data.tensor(file, key, np.dtype(dtype), tuple(shape), blocks)
            self._initializers[key] = self._tape.initializer(tensor, key)
            self.data_files.add(file)
        return self._initializers[key]

    def parts(
        self, file: str, key: str, dtype: npt.DTypeLike, shape: Iterable[int], blocks: Callable[[], Iterable[Any]]
    ) -> Sequence[ir.Value]:
        """Return a tensor of a data file as one tensor for each place of its first axis."""
        whole = self.data.tensor(file, key, np.dtype(dtype), tuple(shape), blocks)
        n, *shape_of_part = whole.shape.numpy()
        n_bytes = whole.nbytes // n
        keys = [f"{key}.{i}" for i in range(n)]
        for i, name in enumerate(keys):
            if name not in self._initializers:
                offset = (whole.offset or 0) + i * n_bytes
                part = ir.ExternalTensor(file, offset, n_bytes, whole.dtype, shape=ir.Shape(shape_of_part), name=name)
                self._initializers[name] = self._tape.initializer(part, name)
        self.data_files.add(file)
        return [self._initializers[name] for name in keys]

    def save(self, path: Path, **outputs: ir.Value) -> None:
        """Write the graph; outputs, all float32, get the names of the arguments.

        Data files are referred to, not written.
        """
        for name, value in outputs.items():
            value.name, value.type = name, ir.TensorType(FLOAT)
        # A node may have got another input than it was made with.
        kept = {id(value) for value in outputs.values()}
        initializers = [value for value in self._tape.initializers if value.uses() or id(value) in kept]
        # ONNX Runtime refuses a domain that it does not know, used or not.
        own = {RANKRT: 1} if any(node.domain == RANKRT for node in self._tape.nodes) else {}
        graph = ir.Graph(
            self._inputs,
            list(outputs.values()),
            nodes=self._tape.nodes,
            initializers=initializers,
            opset_imports={"": OPSET, MICROSOFT: 1, **own},
            name="rankrt",
        )
        model = ir.Model(graph, ir_version=IR_VERSION)
        NameFixPass()(model)
        path.write_bytes(ir.to_proto(model).SerializeToString())
