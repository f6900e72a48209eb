"""What the command lines do with mistakes of the user and faults of the machine: one sentence, never a traceback."""

from __future__ import annotations

import argparse
import errno
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from data.errors import DataError

REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
"""Codes with which the system refuses to let a file grow or be written."""


class UserError(ValueError):
    """Something the user gave is of no use; the message names the file or option, the value, the remedy."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does: what is half written is cleared away."""


def run_cli(
    main: Callable[[Sequence[str] | None], int],
    argv: Sequence[str] | None = None,
    memory: str = "--optim.batch, --continual.replay_sets or --data.size (in stage 0 --pretrain.batch)",
) -> int:
    """Run a command line's `main(argv)` and return the process's exit code.

    `UserError`, `DataError` and faults of the machine become `error: <sentence>` on stderr and code 2, Ctrl-C one
    line and code 130, SIGTERM one line and code 143; any other exception is a fault of this program and keeps its
    traceback. `memory`: the settings to lower when memory runs out. Use as `sys.exit(run_cli(main))`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and classes may hold what a terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with sigterm_raises():
            return main(argv)
    except (UserError, DataError) as error:
        sentence: str | None = str(error)
    except Terminated:
        print("terminated", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        sentence = machine_fault(error, memory)
        if sentence is None:
            raise
    print(f"error: {sentence}", file=sys.stderr)
    return 2


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def first_line(error: Exception) -> str:
    """The beginning of an error's message; the name of its type if that is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def machine_fault(error: Exception, memory: str) -> str | None:
    """Message for a failure of memory, a file or another process of the run; None for any other exception."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "DefaultCPUAllocator" in text:
        return f"out of memory ({text or 'no details'}); lower {memory}"
    if isinstance(error, OSError) and error.errno in REFUSED:
        return f"{error.filename or 'a file'}: {error.strerror}; free space, or name a folder that can be written"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; check the path"
    lost = getattr(torch.distributed, "DistError", ())  # not in every build of torch
    if isinstance(error, lost) or "closed by peer" in text or "reset by peer" in text:
        return f"another process of this run ended ({text}); see its message, then run again with --resume"
    return None


@contextmanager
def noted(what: str) -> Iterator[None]:
    """Let what is only about a result (a plot, a table of figures) fail with the note `what`: the result is there."""
    try:
        yield
    except Exception as error:  # drawing and logging services raise many types
        print(f"note: {what} ({first_line(error)})", file=sys.stderr)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` meanwhile; only the main thread may catch signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
