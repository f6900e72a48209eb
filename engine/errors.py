"""What the command lines do with mistakes of the user: one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from data.errors import DataError


class UserError(ValueError):
    """Something the user gave is of no use; the message names the file or option, the value, the remedy."""


def run_cli(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a command line's `main(argv)` and return the process's exit code.

    `UserError` and `DataError` become `error: <sentence>` on stderr and code 2, Ctrl-C one line and code 130;
    any other exception is a fault of this program and keeps its traceback. Use as `sys.exit(run_cli(main))`.
    """
    try:
        return main(argv)
    except (UserError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
