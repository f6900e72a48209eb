"""Tables of a comparison, as Markdown, from the results of its cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from data.types import TASKS
from engine.evaluation.metrics import HEADLINE

Result = dict[str, Any]
SHOWN = (*HEADLINE.values(), "AP50")
LIMIT = 0.05
"""Largest drop that passes, relative and in points / 100."""


def comparison_table(results: Sequence[Result]) -> str:
    """Final values and drops of every variant against the baselines, then every metric after every stage."""
    chains, singles = chains_and_singles(results)
    lines = ["# Final values and changes", "", *final_lines(chains, singles), ""]
    lines += ["Mean over seeds; changes against the single-task baseline of the same seed, a loss is negative;"]
    lines += [
        "in brackets the mean 95 % interval of a paired bootstrap over images, both sides scored in float32. Changes"
    ]
    lines += [
        "without one are of the values that training recorded, in its own precision. Passed: no metric drops by more"
    ]
    lines += [
        "than 5 %, relative and in points, against single-task baselines / its value right after its own stage.",
        "",
    ]
    return "\n".join([*lines, "# Every metric after every stage", "", *matrix_lines(chains), ""])


def chains_and_singles(results: Sequence[Result]) -> tuple[dict[str, list[Result]], list[Result]]:
    """Chains by variant, and the single-task baselines."""
    chains: dict[str, list[Result]] = {}
    for result in results:
        if "drops" in result:
            chains.setdefault(result["variant"], []).append(result)
    return chains, [r for r in results if "drops" not in r and r["stage"] in TASKS]


def final_lines(chains: dict[str, list[Result]], singles: Sequence[Result]) -> list[str]:
    """One row a variant, as Markdown."""
    return markdown(final_rows(chains, singles))


def final_rows(chains: dict[str, list[Result]], singles: Sequence[Result]) -> list[list[str]]:
    """The head, then one row a variant."""
    metrics = list(HEADLINE.values())
    head = ["variant", "seeds", *(f"{m}{part}" for m in metrics for part in ("", ": change, points", ", relative"))]
    rows = [[*head, "passed", "backward transfer", "minutes", "MiB"]]
    base = {m: [c["rows"][-1][m] for c in singles if HEADLINE[c["stage"]] == m] for m in metrics}
    minutes = [c["minutes"] for c in singles]
    rows.append(["single-task", str(len(singles) // len(metrics))])
    rows[-1] += [text for m in metrics for text in (number(base[m]), "", "")]
    rows[-1] += ["", "", f"{sum(minutes) / max(1, len(minutes) // len(metrics)):.1f}", memory(singles)]
    for name, cells in chains.items():
        row = [name, str(len(cells))]
        for metric in metrics:
            found = [c["drops"][metric] for c in cells]
            row += [
                number([d["after"] for d in found]),
                points(found),
                f"{signed(-100 * mean(d['relative'] for d in found))} %",
            ]
        verdicts = [f"{sum(passed(c, key) for c in cells)} of {len(cells)}" for key in ("drops", "own_drops")]
        rows.append(
            [
                *row,
                " / ".join(verdicts if "own_drops" in cells[0] else verdicts[:1]),
                transfer(cells),
                f"{mean(c['minutes'] for c in cells):.1f}",
                memory(cells),
            ]
        )
    return rows


def matrix_lines(chains: dict[str, list[Result]]) -> list[str]:
    """One row a variant and stage, as Markdown."""
    return markdown(matrix_rows(chains))


def matrix_rows(chains: dict[str, list[Result]]) -> list[list[str]]:
    """The head, then one row a variant and stage."""
    rows = [["variant", "after stage", *SHOWN]]
    for name, cells in chains.items():
        for i, row in enumerate(cells[0]["rows"]):
            rows.append([name, row["stage"], *(number([c["rows"][i][m] for c in cells]) for m in SHOWN)])
    return rows


def passed(cell: Result, against: str) -> bool:
    """Whether no metric dropped by more than the limit, in points and relative; `against` is "drops" or "own_drops"."""
    return all(map(within_limit, cell.get(against, {}).values()))


def within_limit(drop: Mapping[str, Any]) -> bool:
    """Whether a drop passes, in points and relative; where there was nothing to lose, it does not."""
    return bool(drop["before"] > 0 and drop["relative"] <= LIMIT and drop["points"] <= 100 * LIMIT)


def transfer(cells: Sequence[Result]) -> str:
    """Mean change, in points, of the earlier tasks' metrics between their own stage and the end."""
    changes = []
    for cell in cells:
        for row in cell["rows"][:-1]:
            metric = HEADLINE[row["stage"]]
            changes.append(100 * (cell["rows"][-1][metric] - row[metric]))
    return f"{mean(changes):+.1f}" if changes else ""


def points(found: Iterable[dict[str, Any]]) -> str:
    """Mean change in points with the mean of the intervals that are known."""
    drops = list(found)
    text = signed(-mean(d["points"] for d in drops))
    intervals = [d["points_interval"] for d in drops if d["points_interval"]]
    if not intervals:
        return text
    low, high = (-mean(i[end] for i in intervals) for end in (1, 0))
    return f"{text} ({signed(low)} to {signed(high)})"


def signed(change: float) -> str:
    """A change with one decimal: a gain has a plus, a loss a minus."""
    return f"{change:+.1f}" if round(change, 1) else "0.0"


def number(values: Sequence[float | None]) -> str:
    """Mean of values that exist, and their range if there are several."""
    some = [v for v in values if v is not None]
    if not some:
        return ""
    spread = f" ({min(some):.3f}-{max(some):.3f})" if len(some) > 1 else ""
    return f"{mean(some):.3f}{spread}"


def memory(cells: Sequence[Result]) -> str:
    """Largest peak memory in MiB."""
    return f"{max((c['peak_memory_mib'] for c in cells), default=0):.0f}"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first row is its head and whose first column is text."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], f"|---|{'---:|' * (len(rows[0]) - 1)}", *lines[1:]]
