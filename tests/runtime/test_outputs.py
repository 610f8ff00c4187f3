"""How rankings are written: for people, and for programs."""

import csv
import json
from typing import Any

import pytest

from rankrt import Hit, InputError, Ranking
from rankrt.cli.inputs import Document, Place, Query
from rankrt.cli.outputs import Answer, RankingFormat, Style, Table, beside, score_lines


def document(index: int, text: str, **fields: Any) -> Document:
    return Document(
        text=text, index=index, place=Place(file="documents.txt", unit="line", number=index + 1), fields=fields
    )


DOCUMENTS = (document(0, "one", id="d1"), document(2, "two\n\x1b[31mred", id="d2", score=0.5))
RANKING = Ranking(
    hits=(
        Hit(index=1, score=2.5, document=DOCUMENTS[1].text, truncated=True),
        Hit(index=0, score=-1.0, document=DOCUMENTS[0].text, truncated=False),
    ),
    n_documents=2,
    n_tokens=20,
    query_truncated=False,
)


def output(format: RankingFormat, *, names_queries: bool = False, query: Query | None = None) -> list[str]:
    query = query or Query(text="which?", place="--query", fields={"id": "q1"}, documents=DOCUMENTS)
    style = Style.of(format, [query], names_queries=names_queries, has_spans=False)
    return list(style.lines([Answer(query=query, ranking=RANKING)]))


def test_a_table_has_one_line_a_hit_and_nothing_that_a_terminal_would_obey():
    assert output("text") == [
        "  1     2.5000  line 3      two \\x1b[31mred [truncated]",
        "  2    -1.0000  line 1      one",
    ]
    assert output("text", names_queries=True)[0] == "# q1: which?"


def test_json_is_an_object_a_query_with_what_stood_beside_the_texts():
    (line,) = output("json", names_queries=True)
    found = json.loads(line)
    assert (found["query"], found["id"], found["n_documents"]) == ("which?", "q1", 2)
    assert found["results"][0] == {
        "index": 2,
        "score": 2.5,
        "document": "two\n\x1b[31mred",
        "truncated": True,
        "id": "d2",
        "input_score": 0.5,
    }


def test_json_lines_have_a_hit_each():
    found = [json.loads(line) for line in output("jsonl", names_queries=True)]
    assert [(hit["query_id"], hit["rank"], hit["id"]) for hit in found] == [("q1", 1, "d2"), ("q1", 2, "d1")]


def test_csv_has_the_same_columns_in_every_row():
    found = list(csv.DictReader("\n".join(output("csv")).splitlines(keepends=True)))
    assert [(row["rank"], row["index"], row["score"], row["id"], row["input_score"]) for row in found] == [
        ("1", "2", "2.5", "d2", "0.5"),
        ("2", "0", "-1.0", "d1", ""),
    ]
    assert (found[0]["document"], found[0]["truncated"]) == (DOCUMENTS[1].text, "true")


def test_a_trec_run_has_six_columns():
    assert output("trec") == ["q1 Q0 d2 1 2.5 rankrt", "q1 Q0 d1 2 -1.0 rankrt"]


@pytest.mark.parametrize("name", ["", "a b", "a\tb", " a"])
def test_an_id_that_would_break_a_trec_run_is_refused(name: str):
    query = Query(text="which?", place="queries.jsonl, line 3", fields={"id": name}, documents=DOCUMENTS)
    with pytest.raises(InputError, match=r"queries.jsonl, line 3: the id .* which a TREC run cannot hold"):
        output("trec", query=query)


def test_scores_are_written_as_json_lines_and_as_csv():
    rows: list[dict[str, Any]] = [
        {"score": 1.5, "truncated": False, "id": "é"},
        {"score": 2.0, "truncated": True, "id": None},
    ]
    first, _ = next(score_lines([rows], "jsonl")).split("\n")
    assert first == '{"score": 1.5, "truncated": false, "id": "é"}'
    assert list(score_lines([rows[:1], rows[1:]], "csv")) == ["score,truncated,id\n1.5,false,é", "2.0,true,"]
    assert list(score_lines([], "csv")) == []


def test_scores_before_a_row_that_csv_cannot_hold_are_kept():
    lines = score_lines([[{"score": 1.5}, {"score": 2.0, "id": 7}]], "csv")
    assert next(lines) == "score\n1.5"
    with pytest.raises(InputError, match="id"):
        next(lines)


def test_a_value_without_a_column_is_refused_and_not_dropped():
    with pytest.raises(InputError, match="'b' is not in every record"):
        Table(["a"]).row({"a": 1, "b": 2})


def test_no_field_of_the_input_is_lost_to_one_of_ours():
    fields = {"score": 1, "input_score": 2, "id": 3}
    assert beside({"score": 9}, fields) == {"score": 9, "input_score": 1, "input_input_score": 2, "id": 3}
