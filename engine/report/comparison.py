"""The page of a comparison: a matrix of remedies by metrics, from the results of its cells alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from engine.evaluation.metrics import HEADLINE
from engine.experiments.tables import SHOWN, Result, chains_and_singles, final_rows, matrix_rows, passed
from engine.report.page import chart, plain, render
from engine.storage.files import write_text
from engine.tracking.plots import plot_comparison


def write_comparison(results: Sequence[Result], path: Path, name: str, command: str) -> None:
    """Write the page of the results of a grid called `name`, which `command` made."""
    chains, singles = chains_and_singles(results)
    page = render(
        "comparison.html",
        name=name,
        command=command,
        final=final_rows(chains, singles),
        matrix=matrix_rows(chains),
        seeds=seed_rows([*singles, *(cell for cells in chains.values() for cell in cells)]),
        settings=settings_rows(chains),
        machines=machines(results),
        chart=chart(partial(plot_comparison, results), "comparison"),
    )
    write_text(path, page)


def seed_rows(results: Sequence[Result]) -> list[list[str]]:
    """The head, then one row a training: its scores at the end, and whether it passes by both readings of the rule."""
    rows = [["variant", "seed", *SHOWN, "against single-task", "against own stage", "minutes"]]
    for result in results:
        end, stage = result["rows"][-1], result["stage"]
        alone = "drops" not in result
        shown = [HEADLINE[stage], *(["AP50"] if stage == "det" else [])] if alone else SHOWN
        scores = [f"{end[m]:.3f}" if m in shown and end.get(m) is not None else "" for m in SHOWN]
        verdicts = [verdict(result, against) for against in ("drops", "own_drops")]
        name = f"{result['variant']} {stage}" if alone else result["variant"]
        rows.append([name, str(result["seed"]), *scores, *verdicts, f"{result['minutes']:.1f}"])
    return rows


def verdict(result: Result, against: str) -> str:
    """Whether a training passes by one reading of the rule; nothing where it is not known."""
    if against not in result:
        return ""
    return "✓ within 5 %" if passed(result, against) else "✗ above 5 %"


def settings_rows(chains: dict[str, list[Result]]) -> list[tuple[str, str]]:
    """What most variants set alike, then what each sets otherwise, as words."""
    settings: dict[str, dict[str, str]] = {
        name: {key: plain(value) for key, value in cells[0]["settings"].items()} for name, cells in chains.items()
    }
    everywhere = [key for key in next(iter(settings.values()), {}) if all(key in own for own in settings.values())]
    usual = {key: Counter(own[key] for own in settings.values()).most_common(1)[0][0] for key in everywhere}
    rows = {"unless said otherwise": usual}
    rows |= {name: {k: v for k, v in own.items() if usual.get(k) != v} for name, own in settings.items()}
    return [(name, ", ".join(f"{k} {v}" for k, v in own.items())) for name, own in rows.items()]


def machines(results: Sequence[Result]) -> list[str]:
    """Where and by which commits the results came about."""
    return sorted({f"{r['machine']}, {r['device']}, {r['dtype']}, commit {r['commit']}" for r in results})
