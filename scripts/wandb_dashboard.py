"""Make a dashboard of a chain or of a comparison on Weights & Biases, as a saved view of the project.

pip install wandb-workspaces
python -m scripts.wandb_dashboard chain onehead --entity ME            # the run runs/onehead
python -m scripts.wandb_dashboard comparison compare --entity ME       # the runs of configs/compare.yaml

The runs have to be there: trained with `--track.wandb online`, or offline and uploaded by `wandb sync`. A dashboard
that is made again is a further view; delete the old one there.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import wandb

from engine.evaluation.metrics import HEADLINE
from engine.settings.config import TrackConfig
from engine.storage.errors import UserError, first_line, run_cli

STEP = "global_step"
CURVES = (*(f"curves/{metric}" for metric in HEADLINE.values()), "curves/AP50")


def dashboard(kind: str, shown: str, entity: str, project: str) -> Any:
    """A `Workspace` that is not saved yet: of the run called `shown`, or of all runs of that group.

    Raises UserError when the package that makes it is not installed.
    """
    try:
        views = importlib.import_module("wandb_workspaces.workspaces")
        parts = importlib.import_module("wandb_workspaces.reports.v2")
    except ImportError:
        raise UserError("dashboards need a further package: pip install wandb-workspaces") from None
    sections, key = KINDS[kind]
    return views.Workspace(
        entity=entity,
        project=project,
        name=f"{kind}: {shown}",
        sections=[views.Section(name=name, panels=panels, is_open=True) for name, panels in sections(parts).items()],
        settings=views.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=views.RunsetSettings(filters=views.And(views.Metric(key) == shown)),
        auto_generate_panels=False,
    )


def curves(parts: Any) -> list[Any]:
    """Every metric over the steps of the whole chain."""
    return [parts.LinePlot(title=name.split("/")[1], x=STEP, y=[name]) for name in CURVES]


def chain_sections(parts: Any) -> dict[str, list[Any]]:
    """Of a chain: forgetting curves, losses, the course of training, pictures and tables after every stage."""
    losses = [parts.LinePlot(title=title, x=STEP, metric_regex=f"^{title}/") for title in ("loss", "remedy")]
    course = [parts.LinePlot(title=name, x=STEP, y=[f"train/{name}"]) for name in ("loss", "lr", "grad_norm")]
    tables = ["drops", *(f"per_class/{task}" for task in HEADLINE)]
    return {
        "Forgetting": [*curves(parts), parts.LinePlot(title="stage", x=STEP, y=["stage"])],
        "Losses and remedies": losses,
        "Training": course,
        "Predictions": [parts.MediaBrowser(title="after every stage", media_keys=["predictions"])],
        "Drops and classes": [parts.WeavePanelSummaryTable(table_name=name) for name in tables],
    }


def comparison_sections(parts: Any) -> dict[str, list[Any]]:
    """Of a comparison: where every run ends, what it lost, its curves, its cost, and what it set."""
    drops = [f"drop/{metric}" for metric in HEADLINE.values()]
    cost = "train/peak_memory_mib"
    return {
        "At the end": [parts.BarPlot(title=name.split("/")[1], metrics=[name]) for name in CURVES],
        "Drops since the own stage, points": [parts.BarPlot(title=name, metrics=[name]) for name in drops],
        "Forgetting": curves(parts),
        "Cost": [parts.BarPlot(title="peak memory, MiB", metrics=[cost])],
        "Settings that differ": [parts.RunComparer(diff_only=True)],
    }


KINDS: dict[str, tuple[Callable[[Any], dict[str, list[Any]]], str]] = {
    "chain": (chain_sections, "Name"),
    "comparison": (comparison_sections, "Group"),
}
"""Sections of each kind of dashboard, and by what its runs are found."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make the dashboard and print its address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("shown", metavar="NAME", help="name of the chain's run, or of the comparison's group")
    parser.add_argument("--entity", required=True, help="your user or team name there")
    parser.add_argument("--project", default=TrackConfig.project, help="(%(default)s)")
    args = parser.parse_args(argv)
    made = dashboard(args.kind, args.shown, args.entity, args.project)
    try:
        made.save()
    except (wandb.Error, OSError, ValueError) as error:
        raise UserError(
            f"the dashboard was not saved ({first_line(error)}); `wandb login` first, see --entity"
        ) from None
    print(made.url)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
