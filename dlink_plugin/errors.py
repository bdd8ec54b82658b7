"""Telling a user's mistake in one sentence."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from soundfile import SoundFileError

__all__ = ["plain_errors"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with one sentence where the cause is the input.

    The traceback goes to the run's log.txt, for whoever wants to see where.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, SoundFileError) as error:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                record = logger.makeRecord(
                    logger.name, logging.ERROR, "", 0, str(error), (), sys.exc_info()
                )
                handler.handle(record)
        sys.exit(f"error: {error}")
