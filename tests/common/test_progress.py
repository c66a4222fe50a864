"""The progress bar, and log messages around it."""

import io
import logging

import pytest

from andfast.console import log_to
from andfast.progress import Progress


def test_progress_shows_count_and_text() -> None:
    stream = io.StringIO()
    with Progress("net", 10, unit="step", done=4, file=stream) as bar:
        bar.show("loss 0.0512")
        bar.advance(6)
    text = stream.getvalue()
    assert "net" in text
    assert "10/10" in text
    assert "loss 0.0512" in text


def test_disabled_progress_shows_nothing() -> None:
    stream = io.StringIO()
    with Progress("net", 10, unit="step", enabled=False, file=stream) as bar:
        bar.show("loss 1")
        bar.advance()
    assert stream.getvalue() == ""


def test_log_to_prints_on_its_stream_inside_the_block_only(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("andfast.somewhere")
    logger.info("before")
    with log_to("stdout"):
        logger.info("weights: here")
    with log_to("stderr", logging.ERROR):
        logger.info("not this")
        logger.error("this")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("weights: here\n", "this\n")
