"""Look the pinned packages up among known vulnerabilities: `make audit`.

pip-audit, run by uv in an environment of its own, looks up in the OSV database (api.osv.dev) every line of
constraints.txt. Exit code 0: none is known; 1: some are, they are listed; 2: the audit could not run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.storage.errors import UserError, run_cli

ROOT = Path(__file__).parents[1]
TOOL = [str(Path(sys.executable).parent / "uv"), "tool", "run", "pip-audit==2.10.1"]
OPTIONS = ["--no-deps", "--disable-pip", "--vulnerability-service", "osv", "--progress-spinner", "off"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the audit and pass on what it found. Raises UserError when it could not run."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    pins = ROOT / "constraints.txt"
    try:
        done = subprocess.run([*TOOL, *OPTIONS, "-r", str(pins)], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{TOOL[0]}: {error.strerror}; run `make install` first") from None
    return verdict(done.returncode, done.stdout, done.stderr)


def verdict(code: int, found: str, output: str) -> int:
    """Exit code and words for what pip-audit answered; it ends with 1 both for finds and for its own failure."""
    if code == 0:
        print("audited: no known vulnerability in constraints.txt")
        return 0
    summary = next((line for line in output.splitlines() if line.startswith("Found ")), None)
    if summary is None:
        reason = (output.strip().splitlines() or ["no reason given"])[-1][:200]
        raise UserError(f"nothing was audited ({reason}); it needs the package index and https://api.osv.dev")
    print(f"{found}\n{summary}")
    return 1


if __name__ == "__main__":
    sys.exit(run_cli(main))
