"""A function that runs in a process of its own, so that nothing but the processor is shared with this one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Build = Callable[..., Callable[[], object]]


class SubprocessFunction:
    """The function that `build(*args)` returns in another process; each call runs it there once and waits for its end.

    `build` is a function of a module, `args` can be pickled. The process ends when this object or this process does.
    """

    def __init__(self, build: Build, *args: Any) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would bring torch's threads along, half alive
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, args), daemon=True)
        self._process.start()
        theirs.close()
        self()  # returns once the function is built and has run

    def __call__(self) -> None:
        """Raises RuntimeError when the process has failed; what failed is on its stderr."""
        try:
            self._end.send(None)
            self._end.recv()
        except (EOFError, OSError):
            raise RuntimeError("the other process has failed; it says above how") from None


def _serve(end: Connection, build: Build, args: tuple[Any, ...]) -> None:
    run = build(*args)
    while True:
        try:
            end.recv()
        except EOFError:  # the other side has closed the pipe
            return
        run()
        end.send(None)
