"""`rankrt evaluate`: what it prints and writes, what it refuses, and that the examples of its page run."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import ir_measures
import msgspec
import pytest

from rankrt.cli.main import main
from rankrt_finetune.evaluation.records import read_run
from tests.finetune.evaluation.data import DOCUMENTS, QRELS, QUERIES, lines, write_beir, write_run
from tests.finetune.evaluation.test_evaluation import COARSE
from tests.support import VERIFICATION, tiny_artifact

PAGE = Path(__file__).resolve().parents[3] / "docs" / "evaluation.md"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an artifact in two precisions and a data set, in which commands run."""
    tiny_artifact(
        tmp_path / "bge-m3",
        precisions=("fp32", "fp16"),
        points={"fp16": COARSE},
        verification=msgspec.structs.replace(VERIFICATION, max_difference=3.0),
    )
    write_beir(tmp_path / "scifact")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(*arguments: str) -> int:
    return main(["evaluate", *arguments])


def test_the_table_says_what_a_reader_needs(here: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate("./bge-m3", "--data", "beir:./scifact", "--precision", "fp32", "fp16", "--refine", "fp32") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["system", "nDCG@10", "MRR@10", "MAP", "R@10"]
    assert [re.split(r"  +", row)[0] for row in rows[:4]] == [
        "bge-m3 fp32",
        "bge-m3 fp16",
        "bge-m3 fp16, refined in fp32",
        "BM25",
    ]
    assert rows[5].startswith("scifact: 3 queries, 7 pairs. The candidates are those of BM25; they hold 100.0% of")
    assert rows[6].startswith("Differences are from bge-m3 fp32, with 95% intervals of a paired bootstrap")
    assert rows[7] == "Drift and tau from bge-m3 fp32: bge-m3 fp16; bge-m3 fp16, refined in fp32."


def test_json_has_everything_and_is_the_figures_of_ir_measures(here: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(here / "all.trec", {query: list(DOCUMENTS) for query in QUERIES})
    options = ["--run", str(run), "--metrics", "nDCG@3,MAP", "--json", "--trec-run", "runs", "--per-query", "q.jsonl"]
    assert evaluate("bge-m3", "--data", "scifact", "--precision", "fp32,fp16", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["rows"]] == ["bge-m3 fp32", "bge-m3 fp16", "first"]
    grades = [f"{query} 0 {doc} {grade}" for query, of in QRELS.items() for doc, grade in of.items()]
    qrels = list(ir_measures.read_trec_qrels("\n".join(grades)))
    for row, file in zip(found["rows"], ("bge-m3-fp32.trec", "bge-m3-fp16.trec", "first.trec"), strict=True):
        written = list(ir_measures.read_trec_run((here / "runs" / file).read_text()))
        theirs = ir_measures.calc_aggregate([ir_measures.nDCG @ 3, ir_measures.AP], qrels, written)
        assert row["means"] == {
            "nDCG@3": pytest.approx(theirs[ir_measures.nDCG @ 3], abs=1e-12),
            "MAP": pytest.approx(theirs[ir_measures.AP], abs=1e-12),
        }
    of_queries = [json.loads(line) for line in (here / "q.jsonl").read_text().splitlines()]
    assert [(line["id"], line["query"], line["n_candidates"]) for line in of_queries] == [
        (name, text, len(DOCUMENTS)) for name, text in QUERIES.items()
    ]
    mean = sum(line["rows"]["bge-m3 fp16"]["MAP"] for line in of_queries) / 3
    assert mean == pytest.approx(found["rows"][1]["means"]["MAP"], abs=1e-12)
    assert read_run(here / "runs" / "first.trec")[1]["q1"].ids == tuple(DOCUMENTS)


def test_markdown_is_a_table(here: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate("bge-m3", "--data", "scifact", "--markdown") == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("| system | nDCG@10 | MRR@10 | MAP | R@10 | difference in nDCG@10 | p |")
    assert set(second) == {"|", "-"}


def test_the_page_has_its_tables_and_pictures_in_one_file(here: Path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    queries = {**QUERIES, "q4": "<b>one</b> & two"}
    write_beir(here / "odd", queries=queries, qrels={**QRELS, "q4": {"d3": 1}})
    run = write_run(here / "all.trec", {query: list(DOCUMENTS) for query in queries})
    options = ["--precision", "fp32", "fp16", "--html", "reports/page.html", "--run", str(run)]
    assert evaluate("bge-m3", "--data", "odd", *options) == 0
    page = (here / "reports" / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    for title in ("Quality beside speed", "Differences in nDCG@10", "Queries that differ most"):
        assert title in page
    assert "src=" not in page and "<link" not in page
    assert "<b>one" not in page


def test_lines_with_their_own_candidates_are_evaluated(here: Path, capsys: pytest.CaptureFixture[str]):
    lines(here / "dev.jsonl", [{"query": "one", "pos": ["four four"], "neg": ["zero", "one"]}] * 2)
    assert evaluate("bge-m3", "--data", "jsonl:dev.jsonl", "--json") == 0
    first, stage = json.loads(capsys.readouterr().out)["rows"]
    assert first["means"]["MRR@10"] == 1
    assert stage["means"]["MRR@10"] < 1


def test_bm25_alone_is_a_row(here: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate("--data", "scifact") == 0
    head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["system", "nDCG@10", "MRR@10", "MAP", "R@10"]
    assert row.startswith("BM25")


def test_candidates_of_bm25_come_back_from_its_run(here: Path, capsys: pytest.CaptureFixture[str]):
    """So that a large corpus is indexed once; the scores that were kept are still good."""
    assert evaluate("bge-m3", "--data", "scifact", "--json", "--trec-run", "runs", "--output", "out") == 0
    first = json.loads(capsys.readouterr().out)
    assert evaluate("bge-m3", "--data", "scifact", "--json", "--run", "runs/BM25.trec", "--output", "out") == 0
    second = json.loads(capsys.readouterr().out)
    assert [row["means"] for row in first["rows"]] == [row["means"] for row in second["rows"]]
    assert first["data"]["digest"] == second["data"]["digest"]
    assert len(list((here / "out" / "scores").iterdir())) == 1


def test_one_query_says_that_nothing_can_be_tested(here: Path, capsys: pytest.CaptureFixture[str]):
    lines(here / "dev.jsonl", [{"query": "one", "pos": ["four four"], "neg": ["zero", "one"]}])
    assert evaluate("bge-m3", "--data", "dev.jsonl", "--html", "page.html") == 0
    out = capsys.readouterr().out
    assert "There is one query only, so no interval and no test is possible." in out
    assert " p " not in out.splitlines()[0]


def test_files_are_given_one_by_one(here: Path, capsys: pytest.CaptureFixture[str]):
    files = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels/test.tsv"}
    given = [word for name, file in files.items() for word in (f"--{name}", f"scifact/{file}")]
    assert evaluate("bge-m3", *given, "--json") == 0
    by_files = json.loads(capsys.readouterr().out)
    assert evaluate("bge-m3", "--data", "scifact", "--json") == 0
    assert by_files["rows"][0]["means"] == json.loads(capsys.readouterr().out)["rows"][0]["means"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bge-m3"], "give --data, or --corpus, --queries, --qrels"),
        (["bge-m3", "--corpus", "c"], "give --data, or --corpus, --queries, --qrels; --queries is missing"),
        (["bge-m3", "--data", "scifact", "--qrels", "q"], "--data and --qrels both say what the data is"),
        (["bge-m3", "--data", "nowhere"], "--data nowhere: nowhere does not exist"),
        (["bge-m3", "--data", "scifact", "--run", "no.trec"], "--run no.trec: there is no such file"),
        (["bge-m3", "--data", "scifact", "--split", "dev"], "has no split 'dev', only test. Choose one with --split"),
        (["bge-m3", "--data", "scifact", "--precision", "int8"], "has no int8 for cpu; it has cpu-fp32, cpu-fp16"),
        (["bge-m3", "--data", "scifact", "--precision", "fp32", "--refine", "fp32"], "--refine fp32 adds no row"),
        (["bge-m3", "--data", "scifact", "--top-n", "3"], "--top-n 3 is for --refine and --progressive"),
        (["bge-m3", "--data", "scifact", "--progressive"], "--progressive needs a layerwise model|progressive needs"),
        (["bge-m3", "--data", "scifact", "--cutoff-layers", "2"], "--cutoff-layers are for layerwise models"),
        (["bge-m3", "bge-m3", "--data", "scifact"], "bge-m3 is given twice"),
        (["scifact", "--data", "scifact"], "scifact is neither an artifact .* nor a checkpoint"),
        (["nowhere", "--data", "scifact"], "nowhere does not exist and is not a hub id"),
        (["bge-m3", "--data", "scifact", "--output", "scifact/corpus.jsonl"], "corpus.jsonl is a file; --output is a"),
    ],
)
def test_what_can_not_be_done_is_said_in_a_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert evaluate(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "ndgc@10"], "--metrics: ndgc@10 is not a measure of ir-measures"),
        (["--json", "--markdown"], "--json and --markdown exclude each other"),
        (["--precision", "fp23"], "'fp23' is not one of"),
    ],
)
def test_what_is_typed_wrong_is_usage(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert evaluate("bge-m3", "--data", "scifact", *arguments) == 2
    assert message in capsys.readouterr().err


def test_evaluating_artifacts_imports_no_torch(here: Path):
    code = (
        "import sys; from rankrt.cli.main import main;"
        "status = main(['evaluate', 'bge-m3', '--data', 'scifact', '--html', 'page.html']);"
        "print(status, sorted({'torch', 'transformers', 'onnx', 'sentence_transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_loses_only_what_is_running(here: Path, capsys: pytest.CaptureFixture[str]):
    """A process is stopped between two queries. The same command scores the rest, with the same result."""
    queries = {f"q{i}": "one two" for i in range(300)}
    write_beir(here / "long", queries=queries, qrels={query: {"d1": 1} for query in queries})
    run = write_run(here / "all.trec", {query: list(DOCUMENTS) for query in queries})
    options = ["bge-m3", "--data", "long", "--run", str(run), "--precision", "fp32", "--refine", "fp16", "--json"]
    command = [sys.executable, "-m", "rankrt", "evaluate", *options, "--output", "out"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and n_kept(here / "out") < 310:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it finished before it could be interrupted")
    assert process.returncode == 130
    assert "the scores so far are in out; the same command continues" in said
    assert 310 <= n_kept(here / "out") < 600
    assert evaluate(*options, "--output", "out") == 0
    continued = json.loads(capsys.readouterr().out)
    assert n_kept(here / "out") == 600
    assert evaluate(*options) == 0
    for one, other in zip(continued["rows"], json.loads(capsys.readouterr().out)["rows"], strict=True):
        assert (one["means"], one["likeness"]) == (other["means"], other["likeness"])


def n_kept(folder: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob("scores/*.jsonl"))


def test_the_examples_of_the_page_run(here: Path, capsys: pytest.CaptureFixture[str]):
    """The first block makes the data, the others are commands; the artifact's precisions are those of the test."""
    data, *commands = re.findall(r"```(?:python|sh)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(data, {})
    ran = [line for block in commands for line in block.replace("\\\n", " ").splitlines() if "./" in line]
    assert len(ran) >= 3
    for line in ran:
        words = line.replace("int8", "fp16").split()
        assert words[0] == "rankrt"
        assert main(words[1:]) == 0, capsys.readouterr().err
    assert (here / "report.html").exists()
