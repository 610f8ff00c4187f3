"""A run on a tiny BERT: it learns, it ends with the same weights when it is stopped, and others can load the result."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from rankrt import InputError, Reranker
from rankrt.cli.main import main
from rankrt.files.folders import lock_of
from rankrt_export.pipeline import Options, export
from rankrt_finetune.data.examples import read_examples
from rankrt_finetune.errors import MemoryShort, TrainingError
from rankrt_finetune.training.card import Outcome, card
from rankrt_finetune.training.quality import quality
from rankrt_finetune.training.recipe import LOSSES, Lora, Recipe, Task
from rankrt_finetune.training.run import finetune
from tests.finetune.conftest import rows, torch, transformers, write_bert, write_lines

RECIPE = Recipe(epochs=2, batch_size=8, group_size=4, learning_rate=3e-3, max_length=32, evaluate_every=3, seed=3)
SCORES: dict[str, Any] = {"pos_scores": [4.0], "neg_scores": [-3.0, -4.0, -5.0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_bert(folder / "bert")
    write_lines(folder / "train.jsonl", rows(48, **SCORES))
    write_lines(folder / "dev.jsonl", rows(16, seed=9))
    return folder


def task(folder: Path, out: Path, **changes: Any) -> Task:
    asked = Task(checkpoint=str(folder / "bert"), train=folder / "train.jsonl", evaluate=folder / "dev.jsonl", out=out)
    return replace(asked, **changes)


def weights(folder: Path) -> dict[str, Any]:
    return dict(transformers.AutoModelForSequenceClassification.from_pretrained(folder).state_dict())


def assert_equal(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture(scope="module")
def tuned(folder: Path) -> Path:
    finetune(task(folder, folder / "tuned"), RECIPE)
    return folder / "tuned"


def test_a_run_learns_and_its_card_says_how_much(tuned: Path):
    written = (tuned / "README.md").read_text()
    before, after = (float(cell) for cell in written.split("| ndcg@10 |")[1].split("|")[:2])
    assert before < 0.8 < after
    assert "48 examples of train.jsonl. Held out: 16 examples of dev.jsonl." in written
    assert f"transformers {transformers.__version__}" in written
    assert str(tuned.parent) not in written
    assert not list(tuned.parent.glob(".unfinished-*"))


def test_a_card_names_a_base_model_only_where_others_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs/tuned").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    counts = Outcome(
        n_train=1, n_held_out=0, n_left_out=0, overlap=None, before=None, after=None, n_steps=1, best_step=1, style=None
    )
    of_folder, of_hub = (
        card(Task(checkpoint=name, train=Path("train.jsonl"), out=Path("out")), RECIPE, counts)
        for name in ("runs/tuned", "BAAI/bge-reranker-base")
    )
    assert "base_model: BAAI/bge-reranker-base\n" in of_hub
    assert "base_model" not in of_folder
    assert "fine-tuned from tuned with" in of_folder


def test_the_result_scores_alike_in_transformers_sentence_transformers_and_rankrt(tuned: Path, tmp_path: Path):
    from sentence_transformers import CrossEncoder

    pairs = [(e["query"], passage) for e in rows(6, seed=5) for passage in (*e["pos"], *e["neg"])]
    export(str(tuned), tmp_path / "artifact", Options(is_verified=False))
    with Reranker.load(tmp_path / "artifact", precision="fp32") as reranker:
        ours = reranker.score(pairs)
    theirs = CrossEncoder(str(tuned), local_files_only=True).predict(pairs, activation_fn=torch.nn.Identity())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tuned)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tuned).eval()
    with torch.inference_mode():
        plain = [model(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in pairs]
    # fp32: only the order of summation differs, of logits of 0.01.
    np.testing.assert_allclose(ours, plain, atol=1e-6, rtol=0)
    np.testing.assert_allclose(theirs, plain, atol=1e-6, rtol=0)
    assert np.std(plain) > 1e-4


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_teaches(folder: Path, tmp_path: Path, loss: Any):
    outcome = finetune(task(folder, tmp_path / "tuned"), replace(RECIPE, loss=loss, evaluate_every=100))
    assert outcome.before is not None and outcome.after is not None
    assert outcome.after["ndcg@10"] > max(0.8, outcome.before["ndcg@10"] + 0.1)


def test_adapters_are_merged_into_the_weights(folder: Path, tmp_path: Path):
    recipe = replace(RECIPE, lora=Lora(rank=4, alpha=8, dropout=0.0), learning_rate=1e-2, epochs=3)
    outcome = finetune(task(folder, tmp_path / "tuned"), recipe)
    assert outcome.after is not None and outcome.after["ndcg@10"] > 0.8
    before, after = weights(folder / "bert"), weights(tmp_path / "tuned")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "bert.encoder.layer.0.attention.self.query.weight" in changed
    assert "classifier.weight" in changed
    assert not any("embeddings" in name or "LayerNorm" in name for name in changed)


ONE_THREAD = {"OMP_NUM_THREADS": "1"}
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.finetune.test_training import RECIPE, task
from rankrt_finetune.training.run import finetune
def die(n_done, n_steps):
    if n_done == int(sys.argv[3]):
        os.kill(os.getpid(), getattr(signal, sys.argv[4]))
finetune(task(Path(sys.argv[1]), Path(sys.argv[2])), RECIPE, on_progress=die)
"""


def stopped(folder: Path, out: Path, step: int, how: str) -> int:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(folder), str(out), str(step), how]
    return subprocess.run(command, cwd=root, timeout=300, capture_output=True, env=os.environ | ONE_THREAD).returncode


@pytest.mark.parametrize("step", [5, 10], ids=["in the first epoch", "in the second epoch"])
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(
    folder: Path, tuned: Path, tmp_path: Path, step: int
):
    out = tmp_path / "again"
    assert stopped(folder, out, step, "SIGKILL") == -signal.SIGKILL
    with pytest.raises(InputError, match=r"again was begun and is not finished\. Continue with --resume"):
        finetune(task(folder, out), RECIPE)
    with pytest.raises(InputError, match="begun with another options"):
        finetune(task(folder, out), replace(RECIPE, seed=4), resume=True)
    n_seen: list[int] = []
    finetune(task(folder, out), RECIPE, resume=True, on_progress=lambda n_done, n_steps: n_seen.append(n_done))
    assert 1 < n_seen[0] <= step + 1  # it does not begin again
    assert_equal(out, tuned)


def test_after_ctrl_c_there_is_a_checkpoint_to_resume_from(folder: Path, tuned: Path, tmp_path: Path):
    def press(n_done: int, n_steps: int) -> None:
        if n_done == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        finetune(task(folder, tmp_path / "again"), RECIPE, on_progress=press)
    assert not (tmp_path / "again").exists()
    n_seen: list[int] = []
    finetune(task(folder, tmp_path / "again"), RECIPE, resume=True, on_progress=lambda n, of: n_seen.append(n))
    assert n_seen[0] in (5, 6)  # a signal is delivered at the end of the step or in the next one
    assert_equal(tmp_path / "again", tuned)


def test_a_checkpoint_that_was_not_written_whole_is_not_used(folder: Path, tuned: Path, tmp_path: Path):
    out = tmp_path / "again"
    assert stopped(folder, out, 7, "SIGKILL") == -signal.SIGKILL
    half = tmp_path / ".unfinished-again" / "checkpoint-99"
    half.mkdir()
    (half / "trained.safetensors").write_bytes(b"half")
    finetune(task(folder, out), RECIPE, resume=True)
    assert_equal(out, tuned)


def test_a_run_stops_when_nothing_gets_better(folder: Path, tmp_path: Path):
    recipe = replace(RECIPE, learning_rate=1e-12, patience=2, evaluate_every=1, epochs=9)
    assert finetune(task(folder, tmp_path / "tuned"), recipe).n_steps <= 4


def test_accumulated_gradients_are_those_of_a_larger_batch(folder: Path, tmp_path: Path):
    changes: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    write_bert(tmp_path / "bert", **changes)
    found = []
    for name, recipe in {
        "large": replace(RECIPE, batch_size=8),
        "small": replace(RECIPE, batch_size=2, accumulate=4),
        "checkpointed": replace(RECIPE, batch_size=8, checkpointing=True),
    }.items():
        finetune(task(folder, tmp_path / name, checkpoint=str(tmp_path / "bert"), evaluate=None), recipe)
        found.append(weights(tmp_path / name)["classifier.weight"])
    # Sums in another order, over twelve steps of Adam.
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[0], found[2], atol=1e-3, rtol=0)


def test_examples_without_negatives_are_left_out_and_counted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    train = write_lines(tmp_path / "train.jsonl", [*rows(8), {"query": "about cars", "pos": ["truly"], "neg": []}])
    outcome = finetune(task(folder, tmp_path / "tuned", train=train), replace(RECIPE, epochs=1))
    assert (outcome.n_train, outcome.n_left_out) == (8, 1)
    assert "left out 1 examples without negatives, the first at" in caplog.text
    assert "train.jsonl, line 9" in caplog.text


def test_a_query_on_both_sides_is_said(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    train = write_lines(tmp_path / "train.jsonl", [*rows(4), *rows(1, seed=9)])
    finetune(task(folder, tmp_path / "tuned", train=train), replace(RECIPE, epochs=1))
    assert "1 examples have a query that is held out too, the first at" in caplog.text
    assert "1 examples have a query that is held out too" in (tmp_path / "tuned" / "README.md").read_text()


def refused(folder: Path, out: Path, message: str, recipe: Recipe = RECIPE, **changes: Any) -> None:
    with pytest.raises((InputError, TrainingError), match=message):
        finetune(task(folder, out, **changes), recipe)


def test_data_that_cannot_teach_is_refused_with_what_to_do(folder: Path, tmp_path: Path):
    empty = write_lines(tmp_path / "empty.jsonl", [{"query": "q", "pos": ["p"], "neg": []}])
    one = write_lines(tmp_path / "one.jsonl", rows(1))
    refused(folder, tmp_path / "a", r"has no negatives, so there is nothing to learn.*rankrt mine", train=empty)
    refused(folder, tmp_path / "b", "leaves [01] examples to train on", train=one, evaluate=None, hold_out=0.5)
    refused(folder, tmp_path / "c", "no example with negatives", evaluate=empty)
    mixed = write_lines(tmp_path / "mixed.jsonl", [*rows(1, **SCORES), *rows(1, seed=1)])
    distill = replace(RECIPE, loss="distill")
    refused(folder, tmp_path / "d", r"line 2 has no pos_scores .*rankrt teach", recipe=distill, train=mixed)
    two = write_lines(tmp_path / "two.jsonl", [*rows(1, prompt="a?"), *rows(1, seed=1, prompt="b?")])
    refused(folder, tmp_path / "e", "line 2 has another prompt than line 1", train=two)


def test_what_cannot_be_trained_is_refused(folder: Path, tmp_path: Path):
    (tmp_path / "there").mkdir()
    refused(folder, tmp_path / "there", "there exists")
    with FileLock(lock_of(tmp_path / "made")):
        refused(folder, tmp_path / "made", "being made by another process")
    refused(folder, tmp_path / "a", "it has no config.json", checkpoint=str(tmp_path / "there"))
    refused(folder, tmp_path / "b", "--prompt is for decoders", prompt="flagembedding")
    layerwise = tmp_path / "layerwise"
    layerwise.mkdir()
    (layerwise / "config.json").write_text(json.dumps({"architectures": ["LayerWiseMiniCPMForCausalLM"]}))
    refused(folder, tmp_path / "c", "only FlagEmbedding's own trainer trains", checkpoint=str(layerwise))
    with pytest.raises(InputError, match="nothing to resume"):
        finetune(task(folder, tmp_path / "d"), RECIPE, resume=True)
    if not torch.cuda.is_available():
        refused(folder, tmp_path / "e", "fp16 needs a GPU", recipe=replace(RECIPE, precision="fp16"))
    refused(folder, tmp_path / "g", "--report-to trackio needs trackio", recipe=replace(RECIPE, report_to=("trackio",)))
    refused(folder, tmp_path / "f", "patience needs", recipe=replace(RECIPE, patience=1), evaluate=None)


def test_out_of_memory_says_which_batch_fits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model that has room for so many rows at a time stands for a GPU."""
    room, forward = 8, transformers.BertForSequenceClassification.forward

    def small(self: Any, input_ids: Any, **options: Any) -> Any:
        if len(input_ids) > room and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(transformers.BertForSequenceClassification, "forward", small)
    with pytest.raises(MemoryShort, match="--batch-size 2 --accumulate 4 fits"):
        finetune(task(folder, tmp_path / "tuned"), RECIPE)
    with pytest.raises(MemoryShort, match="One query does not fit either: lower --group-size"):
        room = 3
        finetune(task(folder, tmp_path / "other"), RECIPE)


def test_equal_scores_rank_a_negative_first():
    assert quality([[1, 0, 0]], [[1.0, 1.0, 1.0]])["mrr@10"] == pytest.approx(1 / 3)
    assert quality([[1, 0, 0]], [[2.0, 1.0, 1.0]])["ndcg@10"] == 1


def test_the_commands_run_one_after_the_other(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Mine, fine-tune, export in two precisions calibrated on the examples, and teach: as the documentation says."""
    examples = rows(24, n_negatives=0)
    passages = [{"text": passage} for e in rows(24, seed=8) for passage in e["neg"]]
    train = write_lines(tmp_path / "train.jsonl", examples)
    corpus = write_lines(tmp_path / "corpus.jsonl", passages)
    mined, tuned, artifact = (str(tmp_path / name) for name in ("mined.jsonl", "tuned", "artifact"))
    assert main(["mine", str(train), "--corpus", str(corpus), "--negatives", "3", "-o", mined]) == 0
    recipe = ["--epochs", "4", "--batch-size", "8", "--group-size", "4", "--learning-rate", "3e-3"]
    command = ["finetune", str(folder / "bert"), mined, "--hold-out", "0.2", "-o", tuned, *recipe]
    assert main(command) == 0
    assert "after" in capsys.readouterr().out
    assert main(["export", tuned, artifact, "--precision", "fp32", "int8", "--calibration", mined]) == 0
    capsys.readouterr()
    strict = ["--precision", "int8", "--max-drift", "1e-9", "--calibration", mined]
    assert main(["export", tuned, str(tmp_path / "strict"), *strict]) == 1
    assert re.search("Allow more with --max-drift.*depends on --calibration", capsys.readouterr().err)
    assert main(["teach", mined, "--teacher", artifact, "-o", str(tmp_path / "taught.jsonl")]) == 0
    assert all(example.scores for example in read_examples(tmp_path / "taught.jsonl"))
    assert main(command) == 1
    assert "tuned exists" in capsys.readouterr().err
    assert main([*command, "--evaluate", mined]) == 2
