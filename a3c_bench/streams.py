"""Standard streams that were closed, or whose reader goes away: no reason to fail, and nothing to complain about."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

READER_IS_GONE = 128 + signal.SIGPIPE  # the exit status that shells give such a process


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Runs a command and ends the process with the status that it gives.

    A reader that has read enough (`| head -1`) ends it without a word.
    """
    mend_streams()
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        status = READER_IS_GONE
    finally:
        let_readers_go()
    sys.exit(status)


def mend_streams() -> None:
    """Gives closed standard streams somewhere to write to, before another file takes their place."""
    logging.raiseExceptions = False  # a reader that goes away would be a traceback a line
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def let_readers_go() -> None:
    """Writes out what is left; where nobody reads it any more, Python shall not complain at exit either."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
