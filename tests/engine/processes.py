"""Trainings in processes of their own, started quickly: one server imports the program and forks for each."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from multiprocessing.process import BaseProcess

from engine.storage.errors import run_cli
from engine.train import main

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["engine.train"])


def command(arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore it
    sys.exit(run_cli(main, arguments))


def started(arguments: list[str]) -> BaseProcess:
    """A training that runs by now."""
    process = SERVER.Process(target=command, args=(arguments,))
    process.start()
    return process


def completed(arguments: list[str]) -> int | None:
    """Exit code of a training that is waited for."""
    process = started(arguments)
    process.join(280)
    return process.exitcode
