"""Classifiers with two labels: a score is the named label's logit less the other's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import Reranker
from rankrt.cli.main import main
from rankrt.text.pairs import Pair
from rankrt_export.errors import CheckpointError
from rankrt_export.job import job
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import parse
from tests.export.conftest import Make, change_config, torch, transformers
from tests.export.decoders import make_decoder, write_chat_template

pytestmark = pytest.mark.export

PAIRS: list[Pair] = [("why does the tide rise?", "of the moon " * n) for n in range(6)] + [("who?", "me")]
LABELS: dict[str, Any] = {"num_labels": 2, "id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    few = parse(b'{"query": "why?", "pos": ["so", "so it is"], "neg": ["no", "maybe, who knows"]}', "few")
    monkeypatch.setattr(job, "sample", lambda: few)


def logits_of(folder: Path, reranker: Reranker) -> Any:
    """Return transformers' logits of both labels, (n_pairs, 2), for the rows of a reranker."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    encoded = reranker.encode(PAIRS)
    with torch.inference_mode():
        rows = [torch.tensor(encoded.row(i)[None].astype(np.int64)) for i in range(encoded.n_rows)]
        return np.array([model(row).logits[0].numpy() for row in rows])


@pytest.mark.parametrize(
    "config", ["XLMRobertaConfig", "ModernBertConfig", "DistilBertConfig"], ids=["head", "pooled", "named otherwise"]
)
@pytest.mark.parametrize("label", ["yes", "no"])
def test_a_score_is_a_label_s_logit_less_the_other_s(make_checkpoint: Make, tmp_path: Path, config: str, label: str):
    folder = make_checkpoint(config, **LABELS)
    artifact = export(str(folder), tmp_path / "artifact", Options(label=label))
    with Reranker.load(artifact.folder) as reranker:
        logits = logits_of(folder, reranker)
        other = 1 - (number := LABELS["label2id"][label])
        # fp32: the difference is taken before the product here, and after it there.
        np.testing.assert_allclose(reranker.score(PAIRS), logits[:, number] - logits[:, other], atol=1e-4, rtol=0)
    assert logits.std() > 0.1


def test_a_decoder_with_two_labels(tmp_path: Path):
    transformers_config = transformers.Qwen2Config(
        **{**decoder_shape(make_decoder(tmp_path / "base", "Qwen2")), **LABELS}
    )
    folder = tmp_path / "checkpoint"
    torch.manual_seed(1)
    transformers.Qwen2ForSequenceClassification(transformers_config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((tmp_path / "base" / file).read_bytes())
    write_chat_template(folder, "flagembedding")
    artifact = export(str(folder), tmp_path / "artifact", Options(label="yes"))
    with Reranker.load(artifact.folder) as reranker:
        logits = logits_of(folder, reranker)
        np.testing.assert_allclose(reranker.score(PAIRS), logits[:, 1] - logits[:, 0], atol=1e-4, rtol=0)


def decoder_shape(folder: Path) -> dict[str, Any]:
    shape = transformers.AutoConfig.from_pretrained(folder).to_dict()
    return {name: value for name, value in shape.items() if name not in ("architectures", "id2label", "label2id")}


def test_the_command_names_both_labels(make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", str(make_checkpoint(**LABELS)), str(tmp_path / "artifact"), "--label", "yes"]) == 0
    assert "a score is the logit of 'yes' less the logit of 'no'" in capsys.readouterr().out


def test_labels_without_names_have_those_of_transformers(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint(num_labels=2)
    found = export(str(folder), tmp_path / "artifact", Options(label="LABEL_1")).manifest
    assert found.score is not None
    assert found.score.answers == ("LABEL_1", "LABEL_0")


@pytest.mark.parametrize(
    ("labels", "label", "message"),
    [
        (LABELS, None, r"has 2 labels \(no, yes\): it is a classifier.* name it: --label yes\. A score is then"),
        (LABELS, "Yes", r"--label Yes: .* has 2 labels \('no', 'yes'\)\. The option is for classifiers with two, and"),
        ({"num_labels": 1}, "yes", r"--label yes: .* has 1 label \('LABEL_0'\)"),
        ({"num_labels": 3}, "LABEL_1", r"--label LABEL_1: .* has 3 labels"),
        ({"num_labels": 3}, None, r"has 3 labels .*A reranker has one, its score$"),
    ],
)
def test_other_labels_are_refused(
    make_checkpoint: Make, tmp_path: Path, labels: dict[str, Any], label: str | None, message: str
):
    with pytest.raises(CheckpointError, match=message):
        export(str(make_checkpoint(**labels)), tmp_path / "artifact", Options(label=label))


def test_a_label_is_for_classifiers(make_checkpoint: Make, tmp_path: Path):
    folder = make_decoder(tmp_path / "decoder", "Gemma")
    with pytest.raises(CheckpointError, match=r"--label yes is for classifiers; .* is a GemmaForCausalLM"):
        export(str(folder), tmp_path / "artifact", Options(label="yes"))
    # The configuration says two labels, and the head has one.
    folder = make_checkpoint()
    change_config(folder, **LABELS)
    with pytest.raises(CheckpointError, match=r"has 1 rows in classifier\.out_proj\.weight, and config\.json says"):
        export(str(folder), tmp_path / "artifact", Options(label="yes"))
