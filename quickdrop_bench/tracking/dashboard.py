"""A W&B workspace for this project's runs, as code: which panels show which metrics."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.methods import METHODS
from quickdrop_bench.reporting.figures.style import method_styles
from quickdrop_bench.reporting.frame import SETTING

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "Federated unlearning"

GROUPING = ("method", "method_setting", *SETTING, "scale", "fine_tuning")
"""Config keys by which runs are grouped, the outermost first; what is left in one group differs in its seed.

W&B draws one point for each innermost group, so by the method alone a sweep would shrink to one point.
"""

ALPHA = "federation.alpha"

NOTE = """Points and lines are means over the seeds of one setting. **Bars** are means over all runs of a method that
the filter leaves: filter by `artefact` and `dataset` before comparing them."""

TITLES = {
    "accuracy": "Test accuracy",
    "loss": "Training loss",
    "matching_distance": "Matching distance",
    "participants": "Clients taking part",
    "f_set_accuracy": "F-Set accuracy",
    "r_set_accuracy": "R-Set accuracy",
    "seconds": "Seconds",
    "sample_gradients": "Sample-gradients",
    "upload_bytes": "Upload (bytes)",
    "speedup": "Speedup over Retrain-Or",
    "r_set_gap": "R-Set − Retrain-Or's",
}
"""What panels call metrics."""


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
    wr = _panels()
    from wandb_workspaces import expr
    from wandb_workspaces.workspaces import RunsetSettings, Section, Workspace, WorkspaceSettings

    opened = ("Accuracy against cost", "Table")
    return Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[Section(name=name, panels=panels, is_open=name in opened) for name, panels in _sections(wr).items()],
        settings=WorkspaceSettings(x_axis="Step", smoothing_type="none", smoothing_weight=0, max_runs=100),
        runset_settings=RunsetSettings(
            filters="",
            groupby=[expr.Config(key) for key in GROUPING],
            group_colors={method: style.color for method, style in method_styles(METHODS).items()},
            pinned_columns=[f"summary:total/{name}" for name in ("r_set_accuracy", "f_set_accuracy", "seconds")],
        ),
    )


def definition(entity: str, project: str) -> str:
    """The workspace as the JSON text that W&B would get; arguments and errors are those of :func:`workspace`.

    The ids of panels are drawn anew on every call.
    """
    # The package has no public way to this; what it saves is made from the same property.
    return json.dumps(workspace(entity, project)._spec, indent=2, ensure_ascii=False)


def publish(entity: str, project: str) -> str:
    """Save the workspace as a new view of a project that exists, and return its address; every call makes another.

    Raises:
        BadInput: as :func:`workspace`, or W&B cannot be reached, knows no API key, or refuses the view.
    """
    built = workspace(entity, project)
    try:
        return str(built.save().url)
    except Exception as error:  # those about keys, the network and the server share no other base
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise BadInput("dashboard", f"{entity}/{project}", f"W&B did not save it ({reason})") from error


def _panels() -> Any:
    """The kinds of panels, imported without the warnings of models in an older pydantic's style."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import wandb_workspaces.workspaces  # noqa: F401
            from wandb_workspaces.reports.v2 import interface
    except ImportError as error:
        allowed = "install quickdrop-bench[dashboard]"
        raise BadInput("dashboard", "wandb-workspaces is not installed", allowed) from error
    return interface


def _sections(wr: Any) -> dict[str, list[Any]]:
    by_class = {"title": "Test accuracy by class", "x": "round", "smoothing_type": "none"}
    varied = {"the scale": wr.Config("scale"), "α": wr.Config(ALPHA)}
    return {
        "Accuracy against cost": [
            _points(wr, "r_set_accuracy", "seconds", wr.SummaryMetric("total/seconds")),
            _points(wr, "r_set_accuracy", "sample-gradients", wr.SummaryMetric("total/sample_gradients")),
            _bars(wr, "f_set_accuracy"),
            wr.MarkdownPanel(markdown=NOTE),
        ],
        "Table": [
            *(_bars(wr, name) for name in ("r_set_accuracy", "f_set_accuracy", "seconds", "speedup", "r_set_gap")),
            wr.MediaBrowser(title="Table or figure", media_keys=["table", "figure"]),
        ],
        "Rounds": [
            *_lines(wr, "round", "accuracy", "loss", "matching_distance", "participants"),
            wr.LinePlot(metric_regex=r"per_round/class_\d+_accuracy", **by_class),
        ],
        "Stages": _lines(
            wr, "stage", "f_set_accuracy", "r_set_accuracy", "seconds", "sample_gradients", "upload_bytes"
        ),
        "Requests one after the other": _lines(wr, "request", "f_set_accuracy", "r_set_accuracy", "seconds"),
        "Sweep": [
            *(_points(wr, y, over, x) for over, x in varied.items() for y in ("r_set_accuracy", "seconds")),
            _settings_to_results(wr),
        ],
    }


def _points(wr: Any, metric: str, over: str, x: Any) -> Any:
    """A run's total over a setting or a cost, on a logarithmic axis; seconds are logarithmic too."""
    how = {"log_x": True, "log_y": metric == "seconds", "legend_template": "${config:method}"}
    return wr.ScatterPlot(title=f"{TITLES[metric]} over {over}", x=x, y=wr.SummaryMetric(f"total/{metric}"), **how)


def _bars(wr: Any, metric: str) -> Any:
    """A bar for each method: the mean over its runs, with their standard deviation."""
    how = {"groupby": wr.Config("method"), "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    return wr.BarPlot(title=f"{TITLES[metric]} by method", metrics=[f"total/{metric}"], **how)


def _lines(wr: Any, axis: str, *metrics: str) -> list[Any]:
    """A line for each group of runs: their mean, with smallest and largest, unsmoothed."""
    how = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax", "smoothing_type": "none"}
    return [wr.LinePlot(title=TITLES[name], x=axis, y=[f"per_{axis}/{name}"], **how) for name in metrics]


def _settings_to_results(wr: Any) -> Any:
    wanted = {"scale s": wr.Config("scale"), "α": wr.Config(ALPHA)}
    wanted |= {"R-Set accuracy": wr.SummaryMetric("total/r_set_accuracy"), "seconds": wr.SummaryMetric("total/seconds")}
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=metric, display_name=name, log=name != "R-Set accuracy")
        for name, metric in wanted.items()
    ]
    return wr.ParallelCoordinatesPlot(title="Scale, α, accuracy and time", columns=columns)
