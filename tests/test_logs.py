"""What is written of failures: each place once, then how often."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from twinfer_server.logs import MAX_CHARS, LogHandler, configure_logging

logger = logging.getLogger("tests.logs")


@contextmanager
def logging_to(written: io.StringIO, as_json: bool = False) -> Iterator[LogHandler]:
    before = logging.getLogger().handlers[:]
    level, stderr = logging.getLogger().level, sys.stderr
    logging.getLogger().handlers = []  # force would close those of others
    sys.stderr = written
    try:
        configure_logging("info", as_json)
        [handler] = logging.getLogger().handlers
        assert isinstance(handler, LogHandler)
        yield handler
    finally:
        sys.stderr = stderr
        logging.getLogger().handlers = before
        logging.getLogger().setLevel(level)


def fail(said: object, member: str = "vision") -> None:
    try:
        raise ValueError(said)
    except ValueError:
        logger.exception("member %s raised", member)


def fail_elsewhere() -> None:
    try:
        raise ValueError("a")
    except ValueError:
        logger.exception("member %s raised", "vision")


def test_a_traceback_that_repeats_is_one_line_with_a_count() -> None:
    written = io.StringIO()
    with logging_to(written) as handler:
        for number in range(1001):
            fail(f"number {number}")
        assert written.getvalue().count("Traceback") == 1
        handler.tell_repeats()
        handler.tell_repeats()
    *first, last = written.getvalue().splitlines()
    assert first[-1] == "ValueError: number 0"
    assert last.endswith("ERROR tests.logs: member vision raised: ValueError: number 0 (again, 1,000 times)")


def test_another_member_and_another_place_have_a_traceback_of_their_own() -> None:
    written = io.StringIO()
    with logging_to(written):
        for _ in range(3):
            fail("a")
            fail("a", member="language")
            fail_elsewhere()
    assert written.getvalue().count("Traceback") == 3


def test_after_it_was_counted_the_next_traceback_is_written_whole() -> None:
    written = io.StringIO()
    with logging_to(written) as handler:
        fail("a")
        handler.tell_repeats()
        fail("a")
    assert written.getvalue().count("Traceback") == 2
    assert "again" not in written.getvalue()


def test_what_was_counted_is_said_at_the_end() -> None:
    written = io.StringIO()
    with logging_to(written) as handler:
        fail("a")
        fail("a")
        handler.close()
    assert written.getvalue().endswith("(again, 1 times)\n")


def test_lines_without_an_exception_are_all_written() -> None:
    written = io.StringIO()
    with logging_to(written):
        for _ in range(3):
            logger.warning("member %s is off", "vision")
    assert written.getvalue().count("member vision is off") == 3


@pytest.mark.parametrize("as_json", [False, True])
def test_no_record_is_longer_than_what_a_line_may_have(as_json: bool) -> None:
    written = io.StringIO()
    with logging_to(written, as_json) as handler:
        fail("x" * 10**6)
        fail("y" * 10**6)
        handler.tell_repeats()
    assert len(written.getvalue()) < 2 * MAX_CHARS
    assert "more characters" in written.getvalue()


def test_repetitions_are_json_too() -> None:
    written = io.StringIO()
    with logging_to(written, as_json=True) as handler:
        fail("a\nb")
        fail("a\nb")
        handler.tell_repeats()
    first, again = map(json.loads, written.getvalue().splitlines())
    assert first["exception"].startswith("Traceback")
    assert (again["message"], "exception" in again) == ("member vision raised: ValueError: a b (again, 1 times)", False)


class Mute(Exception):
    """An error that cannot say what it is about."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_error_that_cannot_be_written_harms_nobody_who_logs_it() -> None:
    written = io.StringIO()
    with logging_to(written):
        try:
            raise Mute
        except Mute:
            logger.exception("it raised")
        logger.warning("the next line")
    assert "the next line" in written.getvalue()


def test_frames_of_what_was_counted_are_not_kept() -> None:
    with logging_to(io.StringIO()) as handler:
        fail("a")
        [(record, _)] = handler._repeats.values()
    kept: Any = (record.exc_info, record.args)
    assert kept == (None, None)
