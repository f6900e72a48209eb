"""A function that runs in a process of its own, so that nothing but the processor is shared with this one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Build = Callable[..., Callable[[], object]]


class Apart:
    """Called, it has what `build(*args)` made over there run once, and waits; the result stays there.

    `build` is a function of a module that returns a function, `args` can be pickled. The process ends with this one, if
    not closed before.
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

    def close(self) -> None:
        """End the process; the object is of no use afterwards."""
        self._end.close()
        self._process.join()


def _serve(end: Connection, build: Build, args: tuple[Any, ...]) -> None:
    run = build(*args)
    while True:
        try:
            end.recv()
        except EOFError:  # nobody asks any more
            return
        run()
        end.send(None)
