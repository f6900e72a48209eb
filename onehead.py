"""The command `onehead`, for any folder: `onehead predict --weights W photo.jpg`. `pip install -e .` brings it.

Each tool runs in a process whose `models`, `data` and `engine` are those of this repository, whatever lies in the
folder that it is called from.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

TOOLS = {
    "download": "data.download",
    "train": "engine.train",
    "eval": "eval",
    "predict": "engine.predict",
    "export": "engine.export",
    "benchmark": "engine.benchmark",
}
"""What may follow the command, and the module that it stands for."""


def main() -> int:
    """Run the tool that the first word names with the words after it; returns the exit code where none is named."""
    repository = Path(__file__).resolve().parent
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in TOOLS:
        print(f"usage: onehead {{{','.join(TOOLS)}}} ...", file=sys.stderr)
        return 0 if name in ("-h", "--help") else 2
    if not (repository / "engine").is_dir():
        print("error: onehead was installed without its files: run `pip install -e .` in its folder", file=sys.stderr)
        return 2
    sys.path.insert(0, str(repository))
    del sys.argv[1]
    runpy.run_module(TOOLS[name], run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
