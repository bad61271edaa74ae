"""A W&B workspace for this project's runs, as code: which panels show which metrics."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.methods import METHODS
from quickdrop_bench.reporting.figures.style import method_styles
from quickdrop_bench.reporting.frame import SETTING

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import BarPlot, LinePlot, ScatterPlot
    from wandb_workspaces.workspaces import RunsetSettings, Section, Workspace

__all__ = ["GROUPING", "definition", "publish", "workspace"]

NAME = "Federated unlearning"

GROUPING = ("method", "method_setting", *SETTING, "scale", "fine_tuning")
"""Config keys by which runs are grouped, the outermost first; what is left in one group differs in its seed.

W&B draws one point for each innermost group, so by the method alone a sweep would shrink to one point.
"""

ALPHA = "federation.alpha"

NOTE = """Points and lines are means over the seeds of one setting. **Bars** are means over all runs of a method that
the filter leaves: filter by `artefact` and `dataset` before comparing them."""

ROUNDS = {
    "accuracy": "Test accuracy",
    "loss": "Training loss",
    "matching_distance": "Matching distance",
    "participants": "Clients taking part",
}
BY_CLASS = r"per_round/class_\d+_accuracy"

STAGES = {
    "f_set_accuracy": "F-Set accuracy",
    "r_set_accuracy": "R-Set accuracy",
    "seconds": "Seconds",
    "sample_gradients": "Sample-gradients",
    "upload_bytes": "Upload (bytes)",
}

REQUESTS = {"f_set_accuracy": "F-Set accuracy", "r_set_accuracy": "R-Set accuracy", "seconds": "Seconds"}

TOTALS = {
    "r_set_accuracy": "R-Set accuracy",
    "f_set_accuracy": "F-Set accuracy",
    "seconds": "Seconds",
    "speedup": "Speedup over Retrain-Or",
    "r_set_gap": "R-Set − Retrain-Or's",
}


def workspace(entity: str, project: str) -> Workspace:
    """Build the workspace; neither a network nor an API key is needed.

    Args:
        entity: W&B user or team.
        project: W&B project that the runs are in.

    Raises:
        BadInput: the package wandb-workspaces is missing, or a name is empty.
    """
    if not entity or not project:
        option = "--wandb-project" if entity else "--wandb-entity"
        raise BadInput(option, "without a name", "the names of an entity and of a project are needed")
    _import_package()
    from wandb_workspaces.workspaces import Workspace, WorkspaceSettings

    return Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[_trade_off(), _table(), _rounds(), _stages(), _requests(), _sweep()],
        settings=WorkspaceSettings(x_axis="Step", smoothing_type="none", smoothing_weight=0, max_runs=100),
        runset_settings=_runs(),
    )


def definition(entity: str, project: str) -> str:
    """The workspace as the JSON text that W&B would get, with the names of entity and project.

    The ids of panels are drawn anew on every call.

    Args:
        entity: W&B user or team.
        project: W&B project.

    Raises:
        BadInput: as :func:`workspace`.
    """
    # The package has no public way to this; what it saves is made from the same property.
    return json.dumps(workspace(entity, project)._spec, indent=2, ensure_ascii=False)


def publish(entity: str, project: str) -> str:
    """Save the workspace on W&B as a new view of the project; every call makes another.

    Args:
        entity: W&B user or team.
        project: W&B project, which must exist.

    Returns:
        The view's address.

    Raises:
        BadInput: as :func:`workspace`, or W&B cannot be reached, knows no API key, or refuses the view.
    """
    built = workspace(entity, project)
    try:
        return str(built.save().url)
    except Exception as error:  # those about keys, the network and the server share no other base
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise BadInput("dashboard", f"{entity}/{project}", f"W&B did not save it ({reason})") from error


def _import_package() -> None:
    """Import it for the first time, without the warnings of its models, which are in an older pydantic's style."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        allowed = "install quickdrop-bench[dashboard]"
        raise BadInput("dashboard", "wandb-workspaces is not installed", allowed) from error


def _runs() -> RunsetSettings:
    """All runs, grouped, in the colours that the figures give to methods."""
    from wandb_workspaces import expr
    from wandb_workspaces.workspaces import RunsetSettings

    columns = ("summary:total/r_set_accuracy", "summary:total/f_set_accuracy", "summary:total/seconds")
    return RunsetSettings(
        filters="",
        groupby=[expr.Config(key) for key in GROUPING],
        group_colors={method: style.color for method, style in method_styles(list(METHODS)).items()},
        pinned_columns=list(columns),
    )


def _trade_off() -> Section:
    from wandb_workspaces.reports.v2 import interface as wr
    from wandb_workspaces.workspaces import Section

    return Section(
        name="Accuracy against cost",
        is_open=True,
        panels=[
            _against_total("R-Set accuracy over seconds", "seconds"),
            _against_total("R-Set accuracy over sample-gradients", "sample_gradients"),
            _by_method("f_set_accuracy", "F-Set accuracy"),
            wr.MarkdownPanel(markdown=NOTE),
        ],
    )


def _table() -> Section:
    from wandb_workspaces.reports.v2 import interface as wr
    from wandb_workspaces.workspaces import Section

    bars = [_by_method(metric, title) for metric, title in TOTALS.items()]
    return Section(
        name="Table",
        is_open=True,
        panels=[*bars, wr.MediaBrowser(title="Table or figure", media_keys=["table", "figure"])],
    )


def _rounds() -> Section:
    from wandb_workspaces.reports.v2 import interface as wr
    from wandb_workspaces.workspaces import Section

    lines = [_line("round", f"per_round/{metric}", title) for metric, title in ROUNDS.items()]
    by_class = wr.LinePlot(title="Test accuracy by class", x="round", metric_regex=BY_CLASS, smoothing_type="none")
    return Section(name="Rounds", panels=[*lines, by_class])


def _stages() -> Section:
    from wandb_workspaces.workspaces import Section

    return Section(
        name="Stages", panels=[_line("stage", f"per_stage/{metric}", title) for metric, title in STAGES.items()]
    )


def _requests() -> Section:
    from wandb_workspaces.workspaces import Section

    return Section(
        name="Requests one after the other",
        panels=[_line("request", f"per_request/{metric}", title) for metric, title in REQUESTS.items()],
    )


def _sweep() -> Section:
    from wandb_workspaces.reports.v2 import interface as wr
    from wandb_workspaces.workspaces import Section

    column = wr.ParallelCoordinatesPlotColumn
    return Section(
        name="Sweep",
        panels=[
            _against_config("R-Set accuracy over the scale", "scale", "r_set_accuracy"),
            _against_config("Seconds over the scale", "scale", "seconds"),
            _against_config("R-Set accuracy over α", ALPHA, "r_set_accuracy"),
            _against_config("Seconds over α", ALPHA, "seconds"),
            wr.ParallelCoordinatesPlot(
                title="Scale, α, accuracy and time",
                columns=[
                    column(metric=wr.Config("scale"), display_name="scale s", log=True),
                    column(metric=wr.Config(ALPHA), display_name="α", log=True),
                    column(metric=wr.SummaryMetric("total/r_set_accuracy"), display_name="R-Set accuracy"),
                    column(metric=wr.SummaryMetric("total/seconds"), display_name="seconds", log=True),
                ],
            ),
        ],
    )


def _against_total(title: str, cost: str) -> ScatterPlot:
    """R-Set accuracy over a cost, on a logarithmic axis."""
    from wandb_workspaces.reports.v2 import interface as wr

    return wr.ScatterPlot(
        title=title,
        x=wr.SummaryMetric(f"total/{cost}"),
        y=wr.SummaryMetric("total/r_set_accuracy"),
        log_x=True,
        legend_template="${config:method}",
    )


def _against_config(title: str, key: str, metric: str) -> ScatterPlot:
    """A run's total over a positive setting, on a logarithmic axis; seconds are logarithmic too."""
    from wandb_workspaces.reports.v2 import interface as wr

    return wr.ScatterPlot(
        title=title,
        x=wr.Config(key),
        y=wr.SummaryMetric(f"total/{metric}"),
        log_x=True,
        log_y=metric == "seconds",
        legend_template="${config:method}",
    )


def _by_method(metric: str, title: str) -> BarPlot:
    """A bar for each method: the mean over its runs, with their standard deviation."""
    from wandb_workspaces.reports.v2 import interface as wr

    return wr.BarPlot(
        title=f"{title} by method",
        metrics=[f"total/{metric}"],
        groupby=wr.Config("method"),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def _line(x: str, metric: str, title: str) -> LinePlot:
    """A line for each group of runs: their mean, with smallest and largest, unsmoothed."""
    from wandb_workspaces.reports.v2 import interface as wr

    return wr.LinePlot(
        title=title,
        x=x,
        y=[metric],
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        smoothing_type="none",
    )
