"""Decoders in training are asked as the exported artifact asks them, and adapters are merged into what is written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from rankrt import InputError, Reranker
from rankrt_export.errors import CheckpointError
from rankrt_export.pipeline import Options, export
from rankrt_finetune.training.models import load_model
from rankrt_finetune.training.recipe import Lora, Recipe, Task
from rankrt_finetune.training.run import finetune
from tests.export.decoders import make_decoder
from tests.finetune.conftest import rows, torch, write_lines

RECIPE = Recipe(epochs=1, batch_size=4, group_size=3, learning_rate=1e-2, max_length=512, lora=Lora(rank=4, alpha=8))
PAIRS = [(example["query"], passage) for example in rows(2) for passage in (*example["pos"], *example["neg"])]


def scores_in_training(folder: Path) -> np.ndarray:
    loaded = load_model(str(folder), max_length=512, prompt=None, asked=None)
    found: np.ndarray = loaded.encoder.predict(PAIRS, activation_fn=torch.nn.Identity(), batch_size=3)
    return found


def scores_of_artifact(folder: Path, out: Path) -> np.ndarray:
    export(str(folder), out, Options(is_verified=False))
    with Reranker.load(out, precision="fp32") as reranker:
        return reranker.score(PAIRS)


@pytest.mark.parametrize("family", ["Qwen3", "Gemma"])
def test_a_decoder_is_trained_as_it_will_be_asked(tmp_path: Path, family: str):
    folder = make_decoder(tmp_path / "decoder", family)
    # Rows are padded on the left here and run without padding there; fp32 sums in another order.
    np.testing.assert_allclose(
        scores_in_training(folder), scores_of_artifact(folder, tmp_path / "before"), atol=2e-4, rtol=0
    )
    train, dev = (write_lines(tmp_path / f"{seed}.jsonl", rows(12, seed=seed, n_negatives=2)) for seed in (1, 2))
    task = Task(checkpoint=str(folder), train=train, evaluate=dev, out=tmp_path / "tuned")
    outcome = finetune(task, RECIPE)
    assert outcome.before is not None and outcome.after is not None
    np.testing.assert_allclose(
        scores_in_training(task.out), scores_of_artifact(task.out, tmp_path / "after"), atol=2e-4, rtol=0
    )
    assert not any("lora" in path.read_text() for path in task.out.glob("*.json") if path.name != "trainer_state.json")
    assert np.abs(scores_in_training(task.out) - scores_in_training(folder)).max() > 0.01


def test_examples_may_bring_the_question(tmp_path: Path):
    folder = make_decoder(tmp_path / "decoder", "Gemma")
    loaded = load_model(str(folder), max_length=512, prompt=None, asked="Is B about A?")
    ids = loaded.encoder.preprocess([("a", "b")])["input_ids"][0].tolist()
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids).endswith("Is B about A?")


def test_a_decoder_that_nothing_says_how_to_ask_is_refused(tmp_path: Path):
    folder = make_decoder(tmp_path / "decoder", "Gemma")
    (folder / "chat_template.jinja").unlink()
    task = Task(checkpoint=str(folder), train=write_lines(tmp_path / "t.jsonl", rows(2)), out=tmp_path / "tuned")
    with pytest.raises(CheckpointError, match="--prompt"):
        finetune(task, RECIPE)
    with pytest.raises(InputError, match="begun with another options"):
        finetune(replace(task, prompt="flagembedding"), RECIPE, resume=True)
