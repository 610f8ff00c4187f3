"""Log lines as JSON objects: time, message and the numbers of a request, never its text."""

import datetime
import json
import logging
import threading
from typing import Literal

_BUILT_IN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """Writes a record and its `extra` fields as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class PlainLines(logging.Formatter):
    """Writes the same for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        extra = " ".join(f"{name}={value}" for name, value in _extra(record).items())
        return f"{super().format(record)} {extra}".rstrip()


def log_to_stderr(form: Literal["json", "text"], level: str) -> None:
    """Send all logs of the process, with uvicorn's and errors of threads, to standard error in one form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else PlainLines("%(asctime)s %(levelname)-7s %(message)s"))
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger().setLevel(level.upper())
    for name in ("rankrt", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [], True
        logger.setLevel(level.upper())
    threading.excepthook = _log_thread


def _log_thread(end: threading.ExceptHookArgs) -> None:
    name = end.thread.name if end.thread else "of before"
    logging.getLogger("rankrt.server").error("the thread %s ended with an error", name, exc_info=end.exc_value)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _BUILT_IN}
