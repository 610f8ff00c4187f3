"""`rankrt calibrate`: from labelled pairs to probabilities in the artifact, and a report that can be checked."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the extra finetune")

from rankrt import InputError, Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.cli.main import main
from rankrt.scoring import sigmoid
from rankrt_finetune.calibrate.fit import METHODS, Method, fit, reliability, thresholds
from rankrt_finetune.calibrate.labelled import read_labelled

N_PAIRS = 4000


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels that are relevant with the probability sigmoid(2 * logit - 1), and 400 queries."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, N_PAIRS).astype(np.float32)
    is_relevant = random.random(N_PAIRS) < sigmoid(2 * logits - 1)
    return logits, is_relevant, np.arange(N_PAIRS) // 10


@pytest.mark.parametrize("method", METHODS)
def test_the_map_that_drew_the_labels_is_found(drawn, method: Method):
    logits, is_relevant, queries = drawn
    fitted = fit(logits, is_relevant, queries, method)
    at = np.linspace(-2, 2, 9, dtype=np.float32)
    # A share of 4,000 pairs, some 200 a step, is known to about 0.05.
    assert fitted.map.probabilities(at) == pytest.approx(sigmoid(2 * at - 1), abs=0.05)
    assert fitted.after.error < 0.02 < 0.05 < fitted.before.error


def test_the_slope_is_finite_where_labels_are_told_apart():
    logits = np.linspace(-5, 5, 40, dtype=np.float32)
    fitted = fit(logits, logits > 0, np.arange(40), "platt")
    probabilities = fitted.map.probabilities(logits)
    assert (np.diff(probabilities) > 0).all() and probabilities[0] > 0 and probabilities[-1] < 1


def test_the_error_is_the_mean_distance_of_bins_from_the_diagonal():
    """Four pairs at 0.25 of which two are relevant, and four at 0.75 of which three are."""
    probabilities = np.repeat([0.25, 0.75], 4).astype(np.float32)
    labels = np.array([1, 1, 0, 0, 1, 1, 1, 0], bool)
    found = reliability(probabilities, labels)
    assert [(b.n_pairs, b.probability, b.share) for b in found.bins] == [(4, 0.25, 0.5), (4, 0.75, 0.75)]
    assert found.error == 0.125


def test_thresholds_reach_what_was_wanted(drawn):
    logits, is_relevant, _ = drawn
    found = list(thresholds(logits, is_relevant, [0.5, 0.9], [0.5, 0.9]))
    assert [(t.goal, t.wanted) for t in found] == [
        ("precision", 0.5),
        ("precision", 0.9),
        ("recall", 0.5),
        ("recall", 0.9),
    ]
    for threshold in found:
        kept = logits >= threshold.logit
        assert threshold.precision == pytest.approx(is_relevant[kept].mean())
        assert threshold.recall == pytest.approx(is_relevant[kept].sum() / is_relevant.sum())
        assert getattr(threshold, threshold.goal) >= threshold.wanted


def test_a_precision_that_no_threshold_reaches_is_left_out():
    logits = np.array([0, 1, 2, 3], np.float32)
    assert list(thresholds(logits, np.array([0, 1, 1, 0], bool), [0.9], [])) == []


def test_labels_the_wrong_way_around_are_refused(drawn):
    logits, is_relevant, queries = drawn
    with pytest.raises(InputError, match=r"do not score higher.*the right way around"):
        fit(-logits, is_relevant, queries, "platt")


def test_both_kinds_of_lines_and_cells_are_read(tmp_path: Path):
    lines: list[dict[str, Any]] = [{"query": f"q{i}", "pos": ["yes"], "neg": ["no", "never"]} for i in range(9)]
    lines += [{"query": "q9", "passage": "yes", "label": label} for label in (1, True, 0, 0.0)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_labelled(str(tmp_path / "data.jsonl"))
    assert (len(found.pairs), int(found.is_relevant.sum()), found.n_queries) == (31, 11, 10)
    cells = "query,passage,label\n" + "q,yes,1\nq,no,False\n" * 10
    (tmp_path / "data.csv").write_text(cells)
    assert read_labelled(str(tmp_path / "data.csv")).is_relevant.tolist() == [True, False] * 10


def test_a_query_needs_no_relevant_passage_and_its_lines_may_stand_anywhere(tmp_path: Path):
    lines: list[dict[str, Any]] = [{"query": "none", "neg": ["no"] * 10}]
    lines += [{"query": f"q{i % 5}", "document": "yes", "label": 1} for i in range(5)]
    lines += [{"anchor": f"q{i % 5}", "positive": "yes", "negative": "no"} for i in range(5)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_labelled(str(tmp_path / "data.jsonl"))
    assert (len(found.pairs), int(found.is_relevant.sum()), found.n_queries) == (25, 10, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"query": "q", "passage": "p", "label": 1}\n' * 30, "30 relevant pairs and 0 others; .* needs 10 of each"),
        ('{"query": "q", "pos": ["p"], "neg": ["n"]}\n' * 9, "9 relevant pairs and 9 others"),
        ('{"query": "q", "passage": "p", "label": 3}\n', "line 1: label is 3, expected 0 or 1"),
        ('{"query": "q", "passage": "p"}\n', "line 1 has only query, passage; expected"),
        ('{"query": "q", "text": "p"}\n', "line 1 has only query, text; expected"),
        ('{"query": " ", "passage": "p", "label": 1}\n', 'line 1: query is " ", expected a text that is not empty'),
        ('{"query": "q", "passage": null, "label": 1}\n', "line 1: passage is null, expected a text"),
        ('{"query": "q", "pos": "p"}\n', "line 1: there is no negative; expected"),
        ('["q", "p"]\n', 'item 1: expected .*, got "q"'),
        ("", "has no examples; expected lines of"),
    ],
)
def test_data_that_nothing_can_be_fitted_to_is_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "data.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        read_labelled(str(tmp_path / "data.jsonl"))


def test_the_command_writes_a_calibration_and_a_report(artifact: Artifact, tmp_path: Path, capsys):
    """Of the pairs with 1 point a quarter is relevant, of those with 2 a half, of those with 3 three quarters."""
    relevant = {"one": 10, "two": 20, "three": 30}
    lines = [
        {"query": f"zero {i}", "passage": word, "label": int(i < n)} for word, n in relevant.items() for i in range(40)
    ]
    data, report = tmp_path / "labelled.jsonl", tmp_path / "report.html"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["calibrate", str(artifact.folder), "--data", str(data), "--report", str(report)]
    assert main([*command, "--method", "isotonic", "--wanted-precision", "0.7", "--wanted-recall", "0.8"]) == 0
    printed = capsys.readouterr().out
    assert "isotonic, fitted to 120 pairs of 40 queries, 60 of them relevant, scored by cpu-fp32" in printed
    assert re.search(r"precision 0\.7 +2\.5000 +0\.9241 +0\.6250 +0\.750 +0\.500", printed)
    page = report.read_text()
    drawn = [re.search(rf'id="bins-{i}"(.*?)</g>', page, re.DOTALL) for i in range(2)]
    assert [found and len(re.findall("<path|<use", found[1])) for found in drawn] == [3, 3]
    assert "sigmoid of the logit" in page
    assert 'class="error"' in page and "precision 0.7" in page
    with Reranker.load(artifact.folder) as reranker:
        scores = reranker.score([("zero", word) for word in relevant], calibrated=True)
    assert scores.tolist() == [0.25, 0.5, 0.75]
    assert main(command) == 0  # again, over the older one
    assert main(["info", str(artifact.folder)]) == 0
    assert "calibrated (platt) on 120 pairs of 40 queries, by cpu-fp32" in capsys.readouterr().out


def test_an_artifact_is_needed_as_a_folder(tmp_path: Path, capsys):
    assert main(["calibrate", str(tmp_path), "--data", "x.jsonl"]) == 1
    assert "is not a rankrt artifact" in capsys.readouterr().err
