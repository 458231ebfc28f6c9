"""The log: one line for each event on standard error, as text or as JSON, and never one traceback twice within a minute."""

import copy
import json
import logging
import sys
import threading
import time
from traceback import walk_tb
from typing import Any

REPEAT_SECONDS = 60.0
"""How long a traceback is not written again, and its repetitions are counted instead."""
MAX_CHARS = 16_384
"""Of a record; a library's error may say all that it was given."""
MAX_REPEATED_CHARS = 200


class LogHandler(logging.StreamHandler[Any]):
    """Writes records to standard error; of exceptions that one place raises again, only how many there were."""

    def __init__(self) -> None:
        """Begin to count, on a thread of its own that says so once a minute."""
        super().__init__(sys.stderr)
        self._repeats: dict[object, tuple[logging.LogRecord, int]] = {}
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it; the caller holds the handler's lock."""
        try:
            if not self._is_repeated(record):
                super().emit(record)
        except Exception:  # an error that cannot say what it is about
            self.handleError(record)

    def close(self) -> None:
        """Say what has been counted, for the process is about to end."""
        self.tell_repeats()
        super().close()

    def tell_repeats(self) -> None:
        """Write how often each exception was raised again; the next one of each place is written whole."""
        with self.lock or threading.RLock():
            repeats, self._repeats = self._repeats, {}
            for record, count in repeats.values():
                if count:
                    record.msg = f"{record.msg} (again, {count:,} times)"
                    super().emit(record)

    def _is_repeated(self, record: logging.LogRecord) -> bool:
        """Count an exception that has been written already, and remember one that has not."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return False
        places = _find_places(record, error)
        if places in self._repeats:
            first, count = self._repeats[places]
            self._repeats[places] = first, count + 1
            return True
        self._repeats[places] = _summarize(record, error), 0
        return False

    def _run(self) -> None:
        while True:
            time.sleep(REPEAT_SECONDS)
            self.tell_repeats()


class _Lines(logging.Formatter):
    """The time, the level, the logger and what it says."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return _cut(super().format(record))


class JsonLines(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _cut(record.getMessage()),
        }
        fields |= getattr(record, "fields", {})  # what a line says, besides its message
        if record.exc_info:
            fields["exception"] = _cut(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False)


def configure_logging(level: str, as_json: bool) -> None:
    """Log to standard error."""
    handler = LogHandler()
    handler.setFormatter(JsonLines() if as_json else _Lines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _find_places(record: logging.LogRecord, error: BaseException) -> object:
    """Return what a repetition has in common with the first: where it was raised and logged, and of which member, say."""
    names = tuple(value for value in record.args or () if isinstance(value, str))
    raised = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)][-1:]
    return record.pathname, record.lineno, names, type(error), *raised


def _summarize(record: logging.LogRecord, error: BaseException) -> logging.LogRecord:
    """Return the record with one line in place of its traceback, and without the frames, which hold what callers sent."""
    summary = copy.copy(record)
    said = " ".join(f"{record.getMessage()}: {type(error).__name__}: {error}".split())
    summary.msg, summary.args, summary.exc_info, summary.exc_text = said[:MAX_REPEATED_CHARS], None, None, None
    return summary


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]} ... ({len(text) - MAX_CHARS:,} more characters)"
