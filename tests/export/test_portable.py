"""`--target portable`: plain ONNX with transformers' logits, in the layout of files that other programs load.

The programs themselves are asked where they are: RANKRT_PORTABLE_PYTHON is an interpreter that has fastembed,
sentence-transformers and optimum-onnx (`make test-portable`), NODE_PATH a folder of node modules with onnxruntime-web.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from rankrt.arrays import Float32Array
from rankrt.artifact.source import Hub
from rankrt.cli.main import main
from rankrt_export.checkpoint.checkpoint import open_checkpoint
from rankrt_export.errors import CheckpointError, OptionsError, VerificationError
from rankrt_export.job.options import Options
from rankrt_export.portable.export import Portable, export_portable
from rankrt_export.portable.graphs import quantize, write_graph
from tests.export.conftest import Make, torch, transformers
from tests.export.test_deberta import V3

pytestmark = pytest.mark.export

TINY = Path(__file__).resolve().parents[2] / "tiny_reranker" / "checkpoint"
QUERY = "what is a panda?"
PASSAGES = ["hi", "The giant panda is a bear species endemic to China.", "Paris is in France. " * 30, ""]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", {"type_vocab_size": 2, "max_position_embeddings": 512}),
    "electra": ("ElectraConfig", {"type_vocab_size": 2, "max_position_embeddings": 512, "embedding_size": 16}),
    "distilbert": ("DistilBertConfig", {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}),
    "modernbert": ("ModernBertConfig", {"local_attention": 16, "cls_token_id": 0, "classifier_pooling": "mean"}),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Portable:
    options = Options(precisions=("fp32", "fp16", "int8"))
    return export_portable(str(TINY), tmp_path_factory.mktemp("portable") / "tiny", options)


def rows_of(folder: Path) -> dict[str, np.ndarray]:
    """Return a padded batch, as transformers' own tokenizer makes it from the files of a folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = tokenizer([QUERY] * len(PASSAGES), PASSAGES, padding=True, truncation=True, return_tensors="np")
    return {name: array.astype(np.int64) for name, array in rows.items()}


def of_transformers(checkpoint: Path) -> Float32Array:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rows = {name: torch.tensor(array) for name, array in rows_of(checkpoint).items()}
    with torch.inference_mode():
        logits: Float32Array = model(**rows).logits.numpy()
    return logits


def of_onnxruntime(folder: Path, graph: str = "onnx/model.onnx") -> Float32Array:
    session = onnxruntime.InferenceSession(folder / graph, providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_outputs()] == ["logits"]
    rows = rows_of(folder)
    assert {node.name for node in session.get_inputs()} == set(rows)
    return np.asarray(session.run(None, rows)[0])


def test_the_files_have_the_names_that_others_look_for(exported: Portable):
    found = {path.relative_to(exported.folder).as_posix() for path in exported.folder.rglob("*") if path.is_file()}
    assert found == {
        "README.md",
        "config.json",
        "onnx/model.onnx",
        "onnx/model_fp16.onnx",
        "onnx/model_quantized.onnx",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_each_precision_has_the_logits_that_its_figures_say(exported: Portable):
    expected = of_transformers(TINY)
    assert expected.shape == (4, 1)
    for file in exported.files:
        assert file.verification is not None
        limit = {"fp32": 1e-4, "fp16": 0.25, "int8": 2.0}[file.precision]
        drift = np.abs(of_onnxruntime(exported.folder, file.path) - expected).max()
        assert max(drift, file.verification.max_difference) <= limit


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_the_logits_of_transformers_on_padded_rows(make_checkpoint: Make, tmp_path: Path, name: str):
    config, changes = FAMILIES[name]
    checkpoint = make_checkpoint(config, **changes)
    options = Options(precisions=("fp32", "fp16"), is_verified=False)
    folder = export_portable(str(checkpoint), tmp_path / "out", options).folder
    expected = of_transformers(checkpoint)
    assert expected.std() > 0.1
    # fp32: only the order of summation differs, in logits of up to 60.
    np.testing.assert_allclose(of_onnxruntime(folder), expected, atol=1e-4, rtol=2e-5)
    # fp16: random weights amplify rounding; the order of magnitude shows that the same is computed.
    np.testing.assert_allclose(of_onnxruntime(folder, "onnx/model_fp16.onnx"), expected, atol=0.5, rtol=0.05)


def test_graphs_are_of_an_old_opset_and_have_plain_operators(exported: Portable):
    for file in exported.files:
        model = onnx.load(exported.folder / file.path)
        onnx.checker.check_model(model, full_check=file.precision != "int8")
        assert model.ir_version <= 8
        domains = {imported.domain: imported.version for imported in model.opset_import if imported.domain == ""}
        assert domains == {"": 17}
        assert {node.domain for node in model.graph.node} == {""}
        assert not {"Gelu", "Loop"} & {node.op_type for node in model.graph.node}


def test_a_model_that_is_too_large_for_one_file_has_its_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rankrt_export.portable.graphs._MOST_BYTES", 1 << 20)
    (tmp_path / "scratch").mkdir()
    path = tmp_path / "model.onnx"
    write_graph(open_checkpoint(str(TINY), Hub()), "fp32", path, tmp_path / "scratch", lambda n_bytes: None)
    assert (tmp_path / "model.onnx_data").stat().st_size > 10 * path.stat().st_size
    shutil.rmtree(tmp_path / "scratch")
    quantize(path, tmp_path / "model_quantized.onnx", ("MatMul", "Gather"))
    for graph in ("model.onnx", "model_quantized.onnx"):
        onnxruntime.InferenceSession(tmp_path / graph, providers=["CPUExecutionProvider"])
    assert {found.name for found in tmp_path.iterdir()} == {"model.onnx", "model.onnx_data", "model_quantized.onnx"}


def test_the_card_says_where_it_came_from_and_what_was_measured(exported: Portable):
    card = (exported.folder / "README.md").read_text()
    assert card.startswith("---\n") and "pipeline_tag: text-ranking" in card
    figures = exported.files[0].verification
    assert figures is not None and f"| `onnx/model.onnx` | fp32 | 14 | {figures.max_difference:.1e} |" in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precisions": ("fp32", "int4")}, "portable has no int4; it has fp32, fp16, int8"),
        ({"cutoff_layers": (1,)}, "--cutoff-layers is not for --target portable"),
        ({"is_verified": False, "max_difference": 1.0}, "have no effect with --no-verify"),
    ],
)
def test_what_has_no_meaning_is_refused(tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(OptionsError, match=message):
        export_portable(str(TINY), tmp_path / "out", Options(**options))


def test_other_classes_and_graphs_outside_their_limits_are_refused(make_checkpoint: Make, tmp_path: Path):
    albert = make_checkpoint("AlbertConfig", embedding_size=16)
    options = Options()
    with pytest.raises(
        CheckpointError, match="AlbertForSequenceClassification is not implemented for --target portable"
    ):
        export_portable(str(albert), tmp_path / "out", options)
    deberta = make_checkpoint("DebertaV2Config", name="deberta", **V3)
    with pytest.raises(
        CheckpointError, match="DebertaV2ForSequenceClassification is not implemented for --target portable"
    ):
        export_portable(str(deberta), tmp_path / "out", options)
    tight = Options(precisions=("fp16",), max_difference=1e-6)
    with pytest.raises(
        VerificationError, match=r"model_fp16.onnx differs from PyTorch by up to .* nothing was written"
    ):
        export_portable(str(TINY), tmp_path / "out", tight)
    assert not (tmp_path / "out").exists()


def test_the_command_prints_what_was_written(make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["export", str(make_checkpoint()), str(tmp_path / "out"), "--target", "portable", "--no-verify"]
    assert main(arguments) == 0
    assert "onnx/model.onnx" in capsys.readouterr().out
    assert main([*arguments, "--target", "cpu"]) == 1
    assert "--target portable writes a folder of its own. Export cpu into another one" in capsys.readouterr().err


FASTEMBED = """
from fastembed.common.model_description import ModelSource
from fastembed.rerank.cross_encoder import TextCrossEncoder
TextCrossEncoder.add_custom_model(model="a/b", model_file="onnx/model.onnx", sources=ModelSource(hf="a/b"))
logits = list(TextCrossEncoder("a/b", specific_model_path=folder).rerank(query, passages))
"""
SENTENCE_TRANSFORMERS = """
import optimum.onnxruntime, torch
from sentence_transformers import CrossEncoder
model = CrossEncoder(folder, backend="onnx", model_kwargs={"file_name": "model.onnx"})
pairs = [(query, passage) for passage in passages]
logits = model.predict(pairs, activation_fn=torch.nn.Identity()).tolist()
"""


@pytest.mark.parametrize("script", [FASTEMBED, SENTENCE_TRANSFORMERS], ids=["fastembed", "sentence-transformers"])
def test_other_libraries_load_the_folder(exported: Portable, script: str):
    if (python := os.environ.get("RANKRT_PORTABLE_PYTHON")) is None:
        pytest.skip("needs RANKRT_PORTABLE_PYTHON, an interpreter with fastembed and optimum-onnx: make test-portable")
    begin = f"import json\nfolder, query, passages = {str(exported.folder)!r}, {QUERY!r}, {PASSAGES!r}\n"
    printed = subprocess.run(
        [python, "-c", f"{begin}{script}\nprint(json.dumps([float(logit) for logit in logits]))"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    ).stdout
    # Each has its own tokenizer's batches and threads; fp32.
    np.testing.assert_allclose(json.loads(printed.splitlines()[-1]), of_transformers(TINY)[:, 0], atol=1e-4)


WEB = """
const ort = require("onnxruntime-web");
const { readFileSync } = require("node:fs");
const { model, rows } = JSON.parse(readFileSync(0, "utf-8"));
ort.env.wasm.numThreads = 1;
(async () => {
  const bytes = new Uint8Array(readFileSync(model));
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const feed = {};
  for (const name of session.inputNames) {
    const flat = BigInt64Array.from(rows[name].flat().map(BigInt));
    feed[name] = new ort.Tensor("int64", flat, [rows[name].length, rows[name][0].length]);
  }
  console.log(JSON.stringify(Array.from((await session.run(feed)).logits.data)));
})();
"""


def test_onnxruntime_web_has_the_same_logits(exported: Portable):
    if (node := shutil.which("node")) is None:
        pytest.skip("needs node")
    if subprocess.run([node, "-e", "require.resolve('onnxruntime-web')"], capture_output=True).returncode:
        pytest.skip("needs onnxruntime-web in NODE_PATH: npm install onnxruntime-web")
    rows = {name: array.tolist() for name, array in rows_of(exported.folder).items()}
    for graph, tolerance in (("model.onnx", 1e-4), ("model_quantized.onnx", 0.05)):
        asked = json.dumps({"model": str(exported.folder / "onnx" / graph), "rows": rows})
        printed = subprocess.run([node, "-e", WEB], input=asked, capture_output=True, text=True, check=True).stdout
        expected = of_onnxruntime(exported.folder, f"onnx/{graph}")[:, 0]
        np.testing.assert_allclose(json.loads(printed), expected, atol=tolerance)
