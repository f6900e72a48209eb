"""Write the tables of README.md, report.md, docs/search-log.md and colab.ipynb: `python -m scripts.fill_tables`.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; its content is made here from results/ alone, so
text and records cannot drift apart. `--check` writes nothing and fails where they have.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat

from engine.storage.errors import UserError, run_cli
from scripts.report.headlines import first, headline, scores, stages
from scripts.report.speed import exports, profiles, speed
from scripts.report.tables import (
    ablation,
    alone,
    backbones,
    chains,
    classes,
    comparison,
    folds,
    held,
    runs,
    search,
    starts,
)

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "report.md", "docs/search-log.md", "colab.ipynb")
BLOCK = re.compile(r"(<!-- table (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

TABLES: dict[str, Callable[[Path], str]] = {
    "stage0_worth": starts,
    "stage0_sources": starts,
    "search-det": search,
    "search-seg": search,
    "search-cls": search,
    "search-hold": search,
    "search-plain-end": search,
    "search-mosaics": search,
    "search-chain": chains,
    "search-chain-held": chains,
    "search-teacher": chains,
    "search-backbones": starts,
    "search-lite0": chains,
    "held-losses": held,
    "held-losses-lite0": held,
    "held-losses-norms": held,
    "held-losses-more": held,
    "ablation": lambda path: ablation(path.parent / "compare"),
    "compare": comparison,
    "final": comparison,
    "final-9030k": comparison,
    "final-mosaics": comparison,
    "final-24": comparison,
    "final-exclusive": comparison,
    "final-lite0": lambda path: stages(path / "onehead-all-s0"),
    "final-lite0-256": comparison,
    "final-lite0-320": comparison,
    "backbones": backbones,
    "classes": classes,
    "benchmark": speed,
    "profile-cpu": profiles,
    "profile-gpu": profiles,
    "exports": exports,
    "runs": lambda path: runs(path.parent),
    "headline": lambda path: headline(path.parent / "final"),
    "quickstart": stages,
    "stages": lambda path: stages(path.parent / "final" / "onehead-all-s0"),
    "scores": lambda path: scores(path.parent / "classes"),
    "first": lambda path: first(path.parent),
    "folds": lambda path: folds(path.parent / "diagnosis"),
    "alone": lambda path: alone(path.parent),
}
"""Tables by name, which is the folder or file of results that most of them show."""


def fill(text: str, results: Path) -> str:
    """A page with all its tables made anew. Raises UserError for a table that nobody knows."""

    def table(found: re.Match[str]) -> str:
        begin, name, _, end = found.groups()
        if name not in TABLES:
            raise UserError(f"there is no table {name!r}: choose one of {', '.join(TABLES)}")
        return f"{begin}{TABLES[name](results / name)}\n{end}"

    return BLOCK.sub(table, text)


def filled(path: Path, results: Path) -> str:
    """The text of a page with all its tables made anew; of a notebook, those of its text cells."""
    if path.suffix != ".ipynb":
        return fill(path.read_text(), results)
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source, results)
    return f"{nbformat.writes(notebook)}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Fill in the tables of all pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only report whether a page is out of date")
    args = parser.parse_args(argv)
    for path in (ROOT / name for name in PAGES if (ROOT / name).exists()):
        before = path.read_text()
        after = filled(path, ROOT / "results")
        if args.check and after != before:
            raise UserError(f"{path.relative_to(ROOT)} differs from the records: run python -m scripts.fill_tables")
        if not args.check:
            path.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
