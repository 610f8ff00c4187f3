"""Which requests are accepted, and in which order: a timetable at the measured pace. Knows no threads, clock or rows.

Requests run in the order of a list. Each has work left, in seconds of the whole server, and a deadline. A new request
goes before longer ones that can wait for it, so short requests are quick. If it would be late there, it goes further
ahead, as far as the others can afford that. If no place suits all of them, it is refused at once, with the time when
there will be room. So accepted requests finish in time, and an overload wastes no work. Before, when the server only
checked deadlines as they passed, a burst lost nine tenths of its work.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rankrt.arrays import Int64Array
from rankrt.text.options import Rules
from rankrt.text.pairs import Pair

# A request is accepted if it can be done in the first share of its time. Shorter ones that come later may delay it up
# to the second share. With less between the two, an overload refused short requests as often as long ones. The rest
# covers errors of the plan: tokens are estimated from characters, and the pace changes from second to second.
TAKEN_SHARE, KEPT_SHARE = 0.75, 0.95
# The first estimate of a token's characters: four in English, one to two in Chinese. See `Pace.note_tokens`.
_CHARACTERS_PER_TOKEN = 4.0
# The weight of a new run in the pace, after the first few runs, which have equal weights.
_WEIGHT = 0.1
# One very long run (a stopped process, a disk) must not make the server refuse all requests.
_MOST_SLOWER = 4.0
# A pace is current after so many runs without such a pause.
_CURRENT_RUNS, _PAUSE_S = 16, 5.0


class Entry(Protocol):
    """The facts of a request that the timetable needs."""

    @property
    def priority(self) -> int:
        """Lower numbers go first, even if others are late then."""
        ...

    @property
    def is_partial(self) -> bool:
        """Whether the part that is done in time is an answer. Such a request is never late."""
        ...

    @property
    def take_by(self) -> float:
        """The time by which it has to be done, as planned when it comes."""
        ...

    @property
    def keep_by(self) -> float:
        """The time by which it has to be done, however later requests delay it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """There is no place now, but one after so many seconds."""

    retry_after_s: float


@dataclass(slots=True)
class Pace:
    """The speed of a model on all lanes of all workers together, and the tokens of its texts."""

    seconds_per_token: float = 0.0
    tokens_per_expected: float = 1.0
    _n_runs: int = 0
    _n_current: int = 0
    _noted_at: float = -math.inf

    @property
    def is_current(self) -> bool:
        """Whether enough recent runs were measured to give up a request because of the pace."""
        return self._n_current >= _CURRENT_RUNS

    def note_run(self, n_tokens: int, seconds: float, *, at: float) -> None:
        """Note a run. `seconds` are those of the whole server, so a lane's time counts by its share."""
        self._n_runs += 1
        self._n_current = self._n_current + 1 if at - self._noted_at < _PAUSE_S else 1
        self._noted_at = at
        measured, before = seconds / n_tokens, self.seconds_per_token
        self.seconds_per_token = measured
        if before:
            weight = max(_WEIGHT, 1 / self._n_runs)
            self.seconds_per_token = before + weight * (min(measured, _MOST_SLOWER * before) - before)

    def note_tokens(self, n_tokens: int, n_expected: float) -> None:
        """Note the real and the estimated number of tokens of some texts."""
        self.tokens_per_expected += _WEIGHT * (n_tokens / n_expected - self.tokens_per_expected)


def expected_tokens(pairs: Sequence[Pair], rules: Rules) -> Int64Array:
    """Estimate the tokens of each pair's rows from the lengths of its texts."""
    query = np.array([len(query) for query, _ in pairs]) / _CHARACTERS_PER_TOKEN
    passage = np.array([len(passage) for _, passage in pairs]) / _CHARACTERS_PER_TOKEN
    query = np.minimum(query, rules.n_query_tokens)
    if rules.long_documents == "chunk":
        room = np.maximum(rules.max_length - query, 1.0)
        return np.ceil(passage + np.ceil(passage / room) * query + 1).astype(np.int64)
    return np.ceil(np.minimum(query + passage + 1, rules.max_length)).astype(np.int64)


def place(
    entries: Sequence[Entry], work_s: Sequence[float], new: Entry, new_work_s: float, now: float
) -> int | Refused:
    """Return the place of a new request in the order, or that it is refused.

    `entries` are in order, lower priorities first, and `work_s` is the work left of each. The new request goes before
    longer ones that can wait, and further ahead if it would be late itself. Less urgent ones always wait.
    """
    ends = _ends(entries, work_s, now)
    first = sum(entry.priority < new.priority for entry in entries)
    last = sum(entry.priority <= new.priority for entry in entries)
    starts = [ends[i - 1] if i else now for i in range(last + 1)]
    if starts[last] <= now:
        return last  # the server is idle, and an old pace must not keep it idle

    earliest = last
    while earliest > first and _can_wait(
        entries[earliest - 1], ends[earliest - 1], work_s[earliest - 1], new_work_s, now
    ):
        earliest -= 1
    latest = last
    while latest >= earliest and not _in_time(new, starts[latest], new_work_s):
        latest -= 1
    if latest < earliest:
        return Refused(retry_after_s=_room_after(starts[last] - now, new_work_s, new.take_by - now))
    preferred = last
    while preferred > first and work_s[preferred - 1] > new_work_s:
        preferred -= 1
    return min(max(preferred, earliest), latest)


def backlog_s(entries: Sequence[Entry], work_s: Sequence[float], now: float) -> float:
    """Return the seconds until all accepted work is done."""
    return max(0.0, *_ends(entries, work_s, now), now) - now if entries else 0.0


def _ends(entries: Sequence[Entry], work_s: Sequence[float], now: float) -> list[float]:
    """Return the time when each entry is done; partial ones stop at their deadline."""
    ends, end = [], now
    for entry, work in zip(entries, work_s, strict=True):
        end = min(end + work, max(end, entry.keep_by)) if entry.is_partial else end + work
        ends.append(end)
    return ends


def _in_time(entry: Entry, start: float, work_s: float) -> bool:
    return start < entry.take_by if entry.is_partial else start + work_s <= entry.take_by


def _can_wait(entry: Entry, end: float, work_s: float, delay_s: float, now: float) -> bool:
    """Tell whether an entry is still in time after a delay. One that is late anyway loses nothing by it."""
    is_hopeless = now + work_s > entry.keep_by
    return entry.is_partial or is_hopeless or end + delay_s <= entry.keep_by


def _room_after(backlog: float, work_s: float, time_s: float) -> float:
    """Return the seconds after which a request fits after the rest of a backlog; all of it, if it never fits."""
    return backlog - max(0.0, time_s - work_s)
