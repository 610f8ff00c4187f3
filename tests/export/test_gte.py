"""GTE beside transformers' own class, and beside the equations of the code that its checkpoints ask for.

The code is Alibaba's new-impl, which is not run. `of_equations` computes what it computes, in plain PyTorch, from the
names and the fields of a checkpoint as they are stored.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rankrt import Reranker
from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Artifact
from rankrt.artifact.precisions import Precision
from rankrt.text.pairs import Encoded
from rankrt_export.errors import CheckpointError
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import sample
from rankrt_export.verify.rows import RowMaker
from tests.export.conftest import change_config, checkpoint_of, torch, transformers
from tests.export.test_gpu_graphs import CUDA_KERNELS, TENSORRT_OPERATORS, graph_of, logits_on_gpus
from tests.export.test_modernbert import WINDOW_KERNELS, WINDOW_OPERATORS

pytestmark = [
    pytest.mark.export,
    pytest.mark.skipif(not hasattr(transformers, "GteConfig"), reason="transformers has GTE since 5.23"),
]

NTK = {"type": "ntk", "factor": 8.0}
SHAPES: dict[str, dict[str, Any]] = {
    "as it is published": {},
    "one layer": {"num_hidden_layers": 1},
    "unscaled positions": {"rope_scaling": None},
    "a scaling of nothing": {"rope_scaling": {"type": "ntk", "factor": 1.0}},
    "no types": {"type_vocab_size": 0},
    "types of query and passage": {"type_vocab_size": 2, "has_token_types": True},
    "types that the tokenizer does not give": {"type_vocab_size": 2, "has_token_types": False},
}


def new_checkpoint(folder: Path, *, rope_scaling: Any = NTK, gain: float = 9.0, **changes: Any) -> Path:
    """Write a checkpoint under the names, and with the fields, of gte-multilingual-reranker-base."""
    from safetensors.torch import load_file, save_file

    shape: dict[str, Any] = {"max_position_embeddings": 2048, "layer_norm_eps": 1e-12} | changes
    checkpoint_of(folder, "GteConfig", gain=gain, has_token_types=shape.pop("has_token_types", False), **shape)
    tensors = load_file(folder / "model.safetensors")
    save_file({name.replace("gte.", "new."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    code = "Alibaba-NLP/new-impl--"
    change_config(
        folder,
        architectures=["NewForSequenceClassification"],
        model_type="new",
        auto_map={
            "AutoConfig": f"{code}configuration.NewConfig",
            "AutoModelForSequenceClassification": f"{code}modeling.NewForSequenceClassification",
        },
        rope_theta=20000,
        rope_scaling=rope_scaling,
        rope_parameters=None,
        layer_norm_type="layer_norm",
        position_embedding_type="rope",
        logn_attention_scale=False,
        pack_qkv=True,
    )
    return folder


def of_equations(folder: Path, rows: list[tuple[Any, Any]]) -> Float32Array:
    """Score rows of ids and types, one at a time, in float32."""
    from safetensors.torch import load_file
    from torch.nn import functional

    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    n_features, n_heads = config["hidden_size"], config["num_attention_heads"]
    size, scaling = n_features // n_heads, config.get("rope_scaling") or {"factor": 1.0}
    base, scale = config["rope_theta"] * scaling["factor"], scaling["factor"] ** (2 / size)
    frequencies = 1.0 / (base ** (torch.arange(0, size, 2).float() / size)) / scale

    def linear(x: Any, name: str) -> Any:
        return functional.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(x: Any, name: str) -> Any:
        parts = (tensors[f"{name}.weight"], tensors[f"{name}.bias"])
        return functional.layer_norm(x, (n_features,), *parts, config["layer_norm_eps"])

    def turned(x: Any) -> Any:
        angles = torch.arange(x.shape[-2]).float()[:, None] * frequencies
        first, second = x[..., : size // 2], x[..., size // 2 :]
        cosines, sines = angles.cos(), angles.sin()
        return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)

    def score(ids: Any, types: Any) -> float:
        x = tensors["new.embeddings.word_embeddings.weight"][ids]
        if (table := tensors.get("new.embeddings.token_type_embeddings.weight")) is not None:
            x = x + table[types]
        x = norm(x, "new.embeddings.LayerNorm")
        for i in range(config["num_hidden_layers"]):
            layer = f"new.encoder.layer.{i}"
            packed = linear(x, f"{layer}.attention.qkv_proj").reshape(-1, 3, n_heads, size).permute(1, 2, 0, 3)
            query, key, value = packed[:, None]
            attended = functional.scaled_dot_product_attention(turned(query), turned(key), value)[0]
            x = norm(x + linear(attended.transpose(0, 1).flatten(1), f"{layer}.attention.o_proj"), f"{layer}.attn_ln")
            up, gate = linear(x, f"{layer}.mlp.up_gate_proj").chunk(2, dim=-1)
            x = norm(x + linear(functional.gelu(gate) * up, f"{layer}.mlp.down_proj"), f"{layer}.mlp_ln")
        return float(linear(torch.tanh(linear(x[:1], "new.pooler.dense")), "classifier"))

    with torch.inference_mode():
        return np.array([score(torch.tensor(ids), torch.tensor(types)) for ids, types in rows], np.float32)


def rows_of(folder: Path, encoded: Encoded) -> list[tuple[Any, Any]]:
    """Return the ids and the types of rows."""
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    is_typed = "token_type_ids" in tokenizer["model_input_names"]
    ids = [encoded.row(i).astype(np.int64) for i in range(encoded.n_rows)]
    starts = encoded.passage_starts if is_typed else encoded.lengths
    types = [(np.arange(len(row)) >= start).astype(np.int64) for row, start in zip(ids, starts, strict=True)]
    return list(zip(ids, types, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_the_equations_and_of_transformers(tmp_path: Path, shape: str):
    """The export compares every pair of the sample with transformers; the equations are compared here."""
    folder, pairs = new_checkpoint(tmp_path / "checkpoint", **SHAPES[shape]), sample().pairs[::2]
    artifact = export(str(folder), tmp_path / "artifact", Options())
    found = artifact.manifest.variants[0].verification
    assert found is not None
    # fp32: only the order of summation differs, in logits of up to 10.
    assert found.max_difference < 1e-4
    with Reranker.load(artifact.folder, precision="fp32") as reranker:
        assert reranker.variant.layout == "packed"
        expected = of_equations(folder, rows_of(folder, reranker.encode(pairs)))
        np.testing.assert_allclose(reranker.score(pairs), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.05


def test_a_row_as_long_as_the_model_allows(tmp_path: Path):
    folder = new_checkpoint(tmp_path / "checkpoint", max_position_embeddings=8192, num_hidden_layers=2)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(json.loads((folder / "tokenizer_config.json").read_text()) | {"model_max_length": 32768})
    )
    artifact = export(str(folder), tmp_path / "artifact", Options(is_verified=False))
    assert artifact.manifest.max_length == 8192
    pairs = [("why", "long " * n) for n in (100, 1000, 2000)]
    with Reranker.load(artifact.folder, precision="fp32", max_length=8192) as reranker:
        encoded = reranker.encode(pairs)
        assert encoded.lengths.max() == 8192
        # Angles of up to 8,192 radians in float32 differ by 5e-4 if their frequency does in its last bit.
        np.testing.assert_allclose(reranker.score(pairs), of_equations(folder, rows_of(folder, encoded)), atol=1e-4)


def test_a_score_is_bitwise_the_same_in_every_company(tmp_path: Path):
    export(str(new_checkpoint(tmp_path / "checkpoint")), tmp_path / "artifact", Options(is_verified=False))
    pairs = sample().pairs[::2]
    with (
        Reranker.load(tmp_path / "artifact", precision="fp32", n_threads=2) as two,
        Reranker.load(tmp_path / "artifact", precision="fp32", n_threads=1) as one,
    ):
        together = two.score(pairs).tobytes()
        assert np.concatenate([two.score([pair]) for pair in pairs]).tobytes() == together
        assert two.score(pairs[::-1])[::-1].tobytes() == together
        assert one.score(pairs).tobytes() == together


def test_transformers_own_format_is_the_same_model(tmp_path: Path):
    theirs = checkpoint_of(
        tmp_path / "theirs",
        "GteConfig",
        gain=9.0,
        max_position_embeddings=2048,
        layer_norm_eps=1e-12,
        rope_parameters={"rope_type": "linear", "rope_theta": 160_000.0, "factor": 8.0 ** (2 / 8)},
    )
    ours = new_checkpoint(tmp_path / "ours")
    options = Options(is_verified=False)
    of_theirs, of_ours = (
        export(str(folder), folder.parent / f"{folder.name}-out", options) for folder in (theirs, ours)
    )
    assert of_theirs.manifest.files == of_ours.manifest.files
    assert of_theirs.manifest.architecture == of_ours.manifest.architecture == "GteForSequenceClassification"


def test_code_in_the_checkpoint_is_not_run(tmp_path: Path):
    folder = new_checkpoint(tmp_path / "checkpoint")
    code = f"open({str(tmp_path / 'was run')!r}, 'w').close()\n"
    for name in ("configuration", "modeling"):
        (folder / f"{name}.py").write_text(code)
    change_config(
        folder,
        auto_map={
            "AutoConfig": "configuration.NewConfig",
            "AutoModelForSequenceClassification": "modeling.NewForSequenceClassification",
        },
    )
    export(str(folder), tmp_path / "artifact", Options())
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act = 'silu'; only 'gelu'"),
        ({"position_embedding_type": "absolute"}, "position_embedding_type = 'absolute'; only 'rope'"),
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type = 'rms_norm'; only 'layer_norm'"),
        ({"logn_attention_scale": True}, "logn_attention_scale = True; only False"),
        ({"pack_qkv": False}, "pack_qkv = False; only True"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling = .*'yarn'.*only the type 'ntk'"),
        ({"rope_scaling": {"type": "ntk", "factor": 8.0, "mixed_b": 0.75}}, "mixed_b"),
        ({"rope_scaling": {"type": "ntk"}}, "rope_scaling = .*with a factor"),
        ({"rope_scaling": 8}, "rope_scaling"),
        ({"rope_theta": "20000"}, "rope_theta"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"num_attention_heads": 64}, "hidden_size = 32 and num_attention_heads = 64; a head needs an even number"),
        ({"num_attention_heads": 3}, "hidden_size = 32 and num_attention_heads = 3; a head needs an even number"),
        ({"num_labels": 2}, "has 2 labels"),
        ({"architectures": ["NewModel"]}, "NewModel whose code is in its repository"),
    ],
)
def test_what_is_not_implemented_is_named(tmp_path: Path, changes: dict[str, Any], message: str):
    folder = new_checkpoint(tmp_path / "checkpoint", num_hidden_layers=1)
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        export(str(folder), tmp_path / "artifact", Options(is_verified=False))


@pytest.mark.parametrize(
    ("rope", "message"),
    [({"rope_type": "yarn"}, "rope_parameters = .*'yarn'"), ({"rope_type": "linear", "factor": 0}, "a factor above 0")],
)
def test_positions_that_transformers_would_scale_otherwise_are_named(tmp_path: Path, rope: Any, message: str):
    folder = checkpoint_of(tmp_path / "checkpoint", "GteConfig", num_hidden_layers=1)
    change_config(folder, rope_parameters=rope)
    with pytest.raises(CheckpointError, match=message):
        export(str(folder), tmp_path / "artifact", Options(is_verified=False))


def test_every_precision_is_within_its_limits(tmp_path: Path):
    """Random weights of this size amplify what 8 bits round away: they are allowed more than trained ones are."""
    precisions: list[Precision] = ["fp32", "fp16", "int8", "w8"]
    options = Options(precisions=precisions, max_difference=1, min_tau=0.7)
    artifact = export(str(new_checkpoint(tmp_path / "checkpoint")), tmp_path / "artifact", options)
    assert {variant.precision for variant in artifact.manifest.variants} == set(precisions)
    assert all(variant.verification is not None for variant in artifact.manifest.variants)


# GPUs.


@pytest.fixture(scope="module")
def gpu_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = new_checkpoint(tmp_path_factory.mktemp("gte") / "checkpoint", type_vocab_size=2, has_token_types=True)
    options = Options(precisions=["fp32", "fp16"], targets=["cpu", "cuda", "tensorrt"], is_verified=False)
    return export(str(folder), folder.parent / "artifact", options)


# fp32 differs by the order of summation, in logits of up to 10.
GPU_TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 0.1}


@pytest.mark.parametrize("precision", GPU_TOLERANCES)
def test_graphs_for_gpus_have_the_scores_of_the_cpu_s(gpu_artifact: Artifact, precision: Precision):
    questions = sample().questions
    passages = [" ".join(questions[0].passages), "the moon", questions[3].passages[0], ""]
    encoded = RowMaker.open(gpu_artifact).encode([(questions[0].query, passage) for passage in passages])
    with Reranker.load(gpu_artifact.folder, precision="fp32", prepare=False) as reranker:
        expected = reranker._scorer().backend.logits(encoded).last
    for logits in logits_on_gpus(gpu_artifact, encoded, precision):
        np.testing.assert_allclose(logits, expected, atol=GPU_TOLERANCES[precision], rtol=0)
    assert np.ptp(expected) > 0.3


@pytest.mark.parametrize("precision", GPU_TOLERANCES)
def test_graphs_for_gpus_have_operators_that_run_there(gpu_artifact: Artifact, precision: Precision):
    nodes = graph_of(gpu_artifact, f"cuda-{precision}").graph.node
    assert {(node.domain, node.op_type) for node in nodes} <= {*CUDA_KERNELS, *WINDOW_KERNELS, ("", "Tanh")}
    nodes = graph_of(gpu_artifact, f"tensorrt-{precision}").graph.node
    assert {node.op_type for node in nodes} <= {*TENSORRT_OPERATORS, *WINDOW_OPERATORS}


@pytest.mark.parametrize("name", ["tensorrt-fp32", "tensorrt-fp16", "cuda-fp32", "cuda-fp16"])
def test_a_graph_is_valid_and_its_types_can_be_inferred(gpu_artifact: Artifact, name: str):
    onnx.checker.check_model(gpu_artifact.path(f"{name}.onnx"), full_check=name.startswith("tensorrt"))
    onnx.shape_inference.infer_shapes(graph_of(gpu_artifact, name), check_type=True, strict_mode=True, data_prop=True)
