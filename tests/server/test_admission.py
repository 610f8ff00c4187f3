"""The timetable: who is taken, where, and who is refused; with numbers that can be checked in the head."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankrt.server.scheduling.admission import Pace, Refused, backlog_s, expected_tokens, place
from rankrt.text.options import Rules

NOW = 1000.0


@dataclass
class Asked:
    """A request of so many seconds of work that has so many, and some more if it is put off."""

    work: float
    has: float = 60.0
    priority: int = 0
    is_partial: bool = False

    more: float = 0.0

    @property
    def take_by(self) -> float:
        return NOW + self.has

    @property
    def keep_by(self) -> float:
        return NOW + self.has + self.more


def placed(new: Asked, *others: Asked) -> int | Refused:
    return place(others, [other.work for other in others], new, new.work, NOW)


def test_an_idle_server_takes_everything():
    assert placed(Asked(1000)) == 0


def test_requests_of_one_size_go_in_the_order_in_which_they_came():
    assert placed(Asked(5), Asked(5), Asked(5)) == 2


def test_a_short_request_goes_before_long_ones_that_can_wait():
    assert placed(Asked(1), Asked(1), Asked(20), Asked(20)) == 1


def test_a_short_request_waits_where_a_long_one_would_be_late():
    assert placed(Asked(1), Asked(20, has=20.5), Asked(20)) == 1


def test_a_request_that_was_taken_may_be_put_off_by_short_ones_that_come_later():
    full = [Asked(60, more=10)]
    assert placed(Asked(10), *full) == 0
    assert placed(Asked(11), *full) == Refused(retry_after_s=11)


def test_a_request_in_a_hurry_goes_before_shorter_ones_that_can_wait():
    assert placed(Asked(5, has=8), Asked(1), Asked(4), Asked(4)) == 1


def test_what_would_be_late_or_make_others_late_is_refused_with_the_time_until_it_fits():
    full = [Asked(30, has=30), Asked(30, has=60)]
    assert placed(Asked(10), *full) == Refused(retry_after_s=10)
    assert placed(Asked(100), *full) == Refused(retry_after_s=60), "only an idle server would take it"
    assert placed(Asked(1, has=2), *full) == Refused(retry_after_s=59)


def test_a_more_urgent_request_goes_first_whatever_that_costs_the_others():
    full = [Asked(30, has=30), Asked(30, has=60)]
    assert placed(Asked(10, priority=-1), *full) == 0
    assert placed(Asked(10, priority=1), *full) == Refused(retry_after_s=10)


def test_a_partial_answer_takes_what_time_there_is():
    assert placed(Asked(100, is_partial=True), Asked(30)) == 1
    assert placed(Asked(20, has=80), Asked(100, has=60, is_partial=True)) == 0, "it is shorter, and the other can wait"
    assert placed(Asked(150, has=215), Asked(100, has=60, is_partial=True)) == 1, "the other ends after 60 s"
    assert placed(Asked(1, has=20, is_partial=True), Asked(30, has=30)) == Refused(retry_after_s=11)


def test_one_that_would_be_late_alone_holds_up_nobody():
    assert placed(Asked(5), Asked(100, has=60)) == 0


def test_the_backlog_is_what_is_left_of_all():
    assert backlog_s([], [], NOW) == 0
    others = [Asked(10), Asked(100, has=30, is_partial=True), Asked(5)]
    assert backlog_s(others, [other.work for other in others], NOW) == 35


@given(st.lists(st.tuples(st.floats(0.1, 20), st.floats(1, 60)), max_size=40))
def test_whoever_was_taken_is_done_in_time(asked: list[tuple[float, float]]):
    taken: list[Asked] = []
    for work, has in asked:
        new = Asked(work, has)
        found = placed(new, *taken)
        if isinstance(found, Refused):
            assert found.retry_after_s > 0
        elif taken or work <= has:
            taken.insert(found, new)
    end = 0.0
    for request in taken:
        end += request.work
        assert end <= request.has + 1e-6


def test_a_pace_follows_what_is_measured_but_no_single_stall():
    pace = Pace()
    for i in range(20):
        pace.note_run(100, 1.0, at=float(i))
    assert pace.seconds_per_token == pytest.approx(0.01)
    pace.note_run(100, 60.0, at=80)
    assert pace.seconds_per_token == pytest.approx(0.013)
    for i in range(60):
        pace.note_run(100, 2.0, at=81.0 + i)
    assert pace.seconds_per_token == pytest.approx(0.02, rel=0.01)


def test_a_first_run_that_is_slow_is_soon_forgotten():
    pace = Pace()
    for i, seconds in enumerate([4.0, 1.0, 1.0, 1.0, 1.0]):
        pace.note_run(100, seconds, at=float(i))
    assert pace.seconds_per_token == pytest.approx(0.016), "the mean"


def test_a_pace_is_current_while_runs_come_without_a_pause():
    pace = Pace()
    for i in range(16):
        assert not pace.is_current
        pace.note_run(1, 1.0, at=float(i))
    assert pace.is_current
    pace.note_run(1, 1.0, at=100.0)
    assert not pace.is_current


def test_tokens_are_estimated_from_characters_and_cut_as_texts_are():
    rules = Rules(max_length=64)
    pairs = [("q" * 40, "p" * 80), ("q" * 40, "p" * 8000), ("q" * 40, ""), ("q" * 8000, "p" * 8000)]
    assert expected_tokens(pairs, rules).tolist() == [31, 64, 11, 64]
    assert expected_tokens([], rules).tolist() == []


def test_long_documents_have_the_query_in_each_of_their_rows():
    rules = Rules(max_length=60, long_documents="chunk")
    assert expected_tokens([("q" * 40, "p" * 400)], rules).tolist() == [100 + 2 * 10 + 1]
