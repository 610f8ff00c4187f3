"""What a doctor says: a name, a verdict and a sentence."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from rankrt.errors import RankrtError

Verdict: TypeAlias = Literal["ok", "note", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    detail: str

    def as_json(self) -> dict[str, Any]:
        """Return the finding as a JSON object."""
        return asdict(self)


def checked(name: str, look: Callable[[], str]) -> Finding:
    """Return what `look` says, or as a failure what it raises."""
    try:
        return Finding(name=name, verdict="ok", detail=look())
    except RankrtError as error:
        return Finding(name=name, verdict="fail", detail=str(error))
