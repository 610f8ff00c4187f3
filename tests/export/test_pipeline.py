"""The export as a whole: what comes out, and that nothing comes out when something is wrong."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from rankrt import DeviceError, Reranker
from rankrt.cli.main import main
from rankrt_export.checkpoint.tokenizer import template_of
from rankrt_export.errors import CheckpointError, OutputError, VerificationError
from rankrt_export.graph.graph import Graph
from rankrt_export.job import job
from rankrt_export.job.verifier import N_EXAMPLES
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import Texts, parse, sample
from tests.export.conftest import Make, change_config

pytestmark = pytest.mark.export


def nothing_is_left(folder: Path) -> bool:
    return not folder.exists() and not list(folder.parent.glob(".unfinished*"))


def test_the_manifest_says_what_was_exported(make_checkpoint: Make, tmp_path: Path):
    manifest = export(str(make_checkpoint(name="bge")), tmp_path / "artifact", Options()).manifest
    assert (manifest.name, manifest.source.id, manifest.max_length) == ("bge", "bge", 512)
    assert manifest.template.prefix == (0,)
    assert manifest.template.separator == (2, 2)
    assert len(manifest.examples) == N_EXAMPLES
    assert set(manifest.files) == {path.name for path in (tmp_path / "artifact").iterdir()} - {"rankrt.json"}


def test_the_same_checkpoint_gives_the_same_artifact(make_checkpoint: Make, tmp_path: Path):
    folder = str(make_checkpoint())
    one, other = (export(folder, tmp_path / name, Options(is_verified=False)) for name in ("one", "other"))
    assert one.identity == other.identity


def test_the_command_exports_and_says_what_it_made(
    make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["export", str(make_checkpoint()), str(tmp_path / "artifact"), "--precision", "fp32", "fp16"]) == 0
    output = capsys.readouterr().out
    assert "cpu-fp32" in output
    assert "cpu-fp16" in output
    assert main(["doctor", str(tmp_path / "artifact")]) == 0


def test_own_text_is_verified_besides_the_sample(make_checkpoint: Make, tmp_path: Path):
    own = tmp_path / "own.jsonl"
    own.write_text('{"query": "who?", "pos": ["me"], "neg": ["you", "they"], "prompt": "x", "pos_scores": [1]}\n')
    assert main(["export", str(make_checkpoint()), str(tmp_path / "artifact"), "--verify-with", str(own)]) == 0
    manifest = json.loads((tmp_path / "artifact" / "rankrt.json").read_text())
    assert manifest["variants"][0]["verification"]["n_pairs"] == len(sample().pairs) + 3


def test_what_was_not_verified_is_loaded_only_on_demand(make_checkpoint: Make, tmp_path: Path):
    export(str(make_checkpoint()), tmp_path / "artifact", Options(is_verified=False))
    with pytest.raises(DeviceError, match="no verified variant for cpu"):
        Reranker.load(tmp_path / "artifact")
    Reranker.load(tmp_path / "artifact", precision="fp32").close()


def test_a_folder_that_exists_is_never_written_over(make_checkpoint: Make, tmp_path: Path):
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "mine").write_text("keep")
    with pytest.raises(OutputError, match="exists; remove it or choose another folder"):
        export(str(make_checkpoint()), tmp_path / "artifact", Options())
    assert (tmp_path / "artifact" / "mine").read_text() == "keep"


def test_a_variant_outside_its_limits_is_not_written(make_checkpoint: Make, tmp_path: Path):
    options = Options(precisions=["fp16"], max_difference=1e-9)
    message = r"cpu-fp16 differs from PyTorch by up to .* \(limit 1e-09\).*nothing was written"
    with pytest.raises(VerificationError, match=message):
        export(str(make_checkpoint()), tmp_path / "artifact", options)
    assert nothing_is_left(tmp_path / "artifact")


def test_limits_do_not_loosen_fp32(make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    norm = Graph.layer_norm
    monkeypatch.setattr(Graph, "layer_norm", lambda graph, x, name, epsilon: norm(graph, x, name, 0.01))
    with pytest.raises(VerificationError, match="cpu-fp32 differs from PyTorch"):
        export(str(make_checkpoint()), tmp_path / "artifact", Options(max_difference=9.0, min_tau=0.0))
    assert nothing_is_left(tmp_path / "artifact")


def test_weights_that_are_not_numbers_are_named(make_checkpoint: Make, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    folder = make_checkpoint()
    weights = load_file(folder / "model.safetensors")
    weights["classifier.out_proj.bias"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"classifier.out_proj.bias has NaN or infinity \(1 of 1 values"):
        export(str(folder), tmp_path / "artifact", Options())
    assert nothing_is_left(tmp_path / "artifact")


def test_a_template_that_does_not_fit_the_tokenizer_is_noticed(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def with_one_separator(tokenizer: Any, saved: Any) -> Any:
        template = template_of(tokenizer, saved)
        return type(template)(prefix=template.prefix, separator=(2,), suffix=template.suffix)

    monkeypatch.setattr(job, "template_of", with_one_separator)
    with pytest.raises(VerificationError, match=r"tokenizer\.json and transformers do not agree"):
        export(str(make_checkpoint()), tmp_path / "artifact", Options())


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = make_checkpoint()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(OutputError, match="GB free, the artifact takes about"):
        export(str(folder), tmp_path / "artifact", Options())


def test_a_disk_that_fills_up_leaves_nothing_behind(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint()
    limit = 50_000  # bytes a file may have: the kernel refuses to write more, as a full disk does
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OutputError, match=r"could not be written \(File too large\); nothing was left there"):
            export(str(folder), tmp_path / "artifact", Options())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert nothing_is_left(tmp_path / "artifact")


def test_ctrl_c_leaves_nothing_behind(make_checkpoint: Make, tmp_path: Path):
    program = """
        import signal, sys, time
        from rankrt_export.job import verifier
        from rankrt.cli.main import main

        signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in a shell's background ignore it

        def forever(*arguments):
            print("verifying", flush=True)
            time.sleep(60)

        verifier.reference = forever
        sys.exit(main(["export", *sys.argv[1:]]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(make_checkpoint()), str(tmp_path / "artifact")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "verifying\n"
    assert list(tmp_path.glob(".unfinished-artifact-*"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    assert nothing_is_left(tmp_path / "artifact")


def test_the_runtime_exports_a_checkpoint_into_its_cache(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    folder = make_checkpoint()
    started = time.perf_counter()
    with Reranker.load(folder) as reranker:
        first = reranker.score([("who?", "me")])
    exported = time.perf_counter() - started
    started = time.perf_counter()
    with Reranker.load(folder) as reranker:
        assert reranker.score([("who?", "me")]).tobytes() == first.tobytes()
    assert len(list((tmp_path / "cache" / "exported").glob("checkpoint-*"))) == 1
    assert time.perf_counter() - started < exported


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def garbled_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))


def garbled_pickle(folder: Path) -> None:
    no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not a zip file")


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def garbled_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def no_head(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, folder / "model.safetensors")


BAD_CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "an embedding model": (
        lambda folder: change_config(folder, architectures=["XLMRobertaModel"]),
        "is a XLMRobertaModel: it has no classifier head",
    ),
    "a classifier": (
        lambda folder: change_config(folder, id2label={"0": "a", "1": "b"}),
        r"has 2 labels \(a, b\): it is a classifier. A reranker has one",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "is not a checkpoint: it has no config.json"),
    "a config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "a config that is a list": (lambda folder: (folder / "config.json").write_text("[]"), "holds a list"),
    "a config of nothing": (lambda folder: (folder / "config.json").write_text("{}"), "names no model_type"),
    "another activation": (
        lambda folder: change_config(folder, hidden_act="relu"),
        "hidden_act = 'relu'; only 'gelu' is implemented",
    ),
    "no weights": (no_weights, "has no weights: expected model.safetensors"),
    "cut weights": (cut_weights, "is cut or damaged"),
    "garbled weights": (garbled_weights, "is cut or damaged"),
    "a missing shard": (missing_shard, "gone.safetensors is missing: the index names it"),
    "a garbled pickle": (garbled_pickle, "cannot be read as PyTorch weights"),
    "a head that is missing": (no_head, "has no tensor classifier.dense"),
    "no tokenizer": (no_tokenizer, "has no tokenizer: neither tokenizer.json nor sentencepiece"),
    "a garbled tokenizer": (garbled_tokenizer, "cannot be read as a tokenizer"),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_says_what_is_wrong_and_leaves_nothing(make_checkpoint: Make, tmp_path: Path, kind: str):
    damage, message = BAD_CHECKPOINTS[kind]
    folder = make_checkpoint()
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        export(str(folder), tmp_path / "artifact", Options())
    assert nothing_is_left(tmp_path / "artifact")


def test_a_pickle_that_would_run_code_is_refused(make_checkpoint: Make, tmp_path: Path):
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("ran",))

    folder = make_checkpoint()
    no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(CheckpointError, match="cannot be read as PyTorch weights"):
        export(str(folder), tmp_path / "artifact", Options())


def test_what_is_no_folder_is_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Exception, match="no/such-model does not exist here and could not be fetched from the hub"):
        export("no/such-model", tmp_path / "artifact", Options())


def test_texts_are_counted_as_they_are_added():
    one = parse(b'{"query": "q", "pos": ["a"]}', "x")
    assert isinstance(one + one, Texts)
    assert (one + one).pairs == [("q", "a"), ("q", "a")]
