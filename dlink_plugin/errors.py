"""Telling a user's mistake in one sentence."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from soundfile import SoundFileError

__all__ = ["plain_errors"]

logger = logging.getLogger(__name__)

_NO_ROOM = (
    "The memory of the {where} is full. Set a smaller encoding_batch_size if it was "
    "encoding; gradient_checkpointing True, dtype bfloat16 or a smaller batch_size if "
    "it was training; a smaller generation_batch_size or num_beams if it was writing "
    "captions (dlink_plugin.footprint tells what a decoder takes). The reason: {reason}"
)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with one sentence where the cause is the input.

    The traceback goes to the run's log.txt, for whoever wants to see where.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, SoundFileError) as error:
        _end(str(error))
    except RuntimeError as error:
        if (where := _full(error)) is None:
            raise
        reason = next(iter(str(error).splitlines()), "")[:200]
        _end(_NO_ROOM.format(where=where, reason=reason))


def _full(error: RuntimeError) -> str | None:
    """What has no memory left, if that is the error.

    Told by its name, as PyTorch takes seconds to import and may not be there yet.
    """
    if type(error).__name__ == "OutOfMemoryError":
        return "GPU"
    return "machine" if "DefaultCPUAllocator" in str(error) else None


def _end(sentence: str) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            record = logger.makeRecord(
                logger.name, logging.ERROR, "", 0, sentence, (), sys.exc_info()
            )
            handler.handle(record)
    sys.exit(f"error: {sentence}")
