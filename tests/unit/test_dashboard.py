"""The W&B workspace: built without network and key, and about metrics that exist."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import wandb

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.methods import METHODS
from quickdrop_bench.reporting.frame import SETTING
from quickdrop_bench.tracking.dashboard import definition, publish

COST = {*Cost().metrics()}
TOTAL = {f"total/{name}" for name in {*COST, "f_set_accuracy", "r_set_accuracy", "speedup", "f_set_gap", "r_set_gap"}}
STAGE = {f"per_stage/{name}" for name in {*COST, "f_set_accuracy", "r_set_accuracy"}}
ROUND = {f"per_round/{name}" for name in ("accuracy", "loss", "matching_distance", "participants")}
CLASSES = {f"per_round/class_{label}_accuracy" for label in range(12)}
REQUEST = {f"per_request/{name}" for name in ("f_set_accuracy", "r_set_accuracy", "seconds")}
METRICS = TOTAL | STAGE | ROUND | CLASSES | REQUEST | {"round", "stage", "request", "table", "figure"}
"""What runs log."""

CONFIG = {
    *("artefact", "preset", "dataset", "clients", "distribution", "request", "protocol", "method", "seed", "scale"),
    *("fine_tuning", "spec_hash", "federation_hash", "federation.alpha", "setting", "changes", "method_setting"),
}
"""What the config of a run has."""


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and no API key."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the network was used")

    for place, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
        monkeypatch.setattr(place, name, refuse)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


@cache
def defined() -> dict[str, Any]:
    return json.loads(definition("team", "forgetting"))


def sections() -> dict[str, list[dict[str, Any]]]:
    found = defined()["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in found}


def names(panel: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The metrics and config keys that a panel reads, as (``metric`` or ``config``, name)."""
    config = panel["config"]
    plain = [*config.get("metrics", []), *(column["accessor"] for column in config.get("columns", []))]
    for name in [*plain, *(config[axis] for axis in ("xAxis", "yAxis") if axis in config)]:
        if name.startswith("config:"):
            yield "config", config_key(name.removeprefix("config:"))
        else:
            yield "metric", name.removeprefix("summary:")
    if "groupBy" in config:
        yield "config", config_key(config["groupBy"])
    if "metricRegex" in config:
        assert config["useMetricRegex"]
        yield from (("metric", name) for name in METRICS if re.fullmatch(config["metricRegex"], name))
    yield from (("metric", key) for key in config.get("mediaKeys", []))
    yield from (("config", key) for key in re.findall(r"\$\{config:(.*?)\}", config.get("legendTemplate", "")))


def config_key(name: str) -> str:
    """W&B keeps the value of a key ``a.b`` under ``a.value.b``."""
    first, value, *rest = name.split(".")
    assert value == "value"
    return ".".join([first, *rest])


def test_panels_read_only_what_runs_have() -> None:
    assert (defined()["entity"], defined()["project"]) == ("team", "forgetting")
    for section, panels in sections().items():
        for panel in panels:
            read = list(names(panel))
            assert read or panel["viewType"] == "Markdown Panel", (section, panel)
            for kind, name in read:
                assert name in (METRICS if kind == "metric" else CONFIG), (section, name)


SHOWN = {
    "Accuracy against cost": {"total/seconds", "total/sample_gradients", "total/f_set_accuracy"},
    "Table": {"total/r_set_accuracy", "total/seconds", "total/speedup", "total/r_set_gap", "method", "table"},
    "Rounds": {"round", *ROUND, *CLASSES},
    "Stages": {"stage", "per_stage/sample_gradients", "per_stage/upload_bytes"},
    "Requests one after the other": {"request", *REQUEST},
    "Sweep": {"scale", "federation.alpha", "total/r_set_accuracy", "total/seconds"},
}


def test_sections_show_what_they_are_called() -> None:
    assert list(sections()) == list(SHOWN)
    for section, wanted in SHOWN.items():
        assert wanted <= {name for panel in sections()[section] for _, name in names(panel)}


def test_all_runs_are_shown_grouped_by_method_and_unsmoothed() -> None:
    section = defined()["spec"]["section"]
    (runs,) = section["runSets"]
    groups = [config_key(key["name"]) for key in runs["grouping"]]
    assert groups == ["method", "method_setting", *SETTING, "scale", "fine_tuning"]
    assert {*groups} <= CONFIG - {"seed"}
    assert runs["filters"]["filters"] == []
    assert not section["settings"]["smoothingActive"]
    lines = [p["config"] for panels in sections().values() for p in panels if p["viewType"] == "Run History Line Plot"]
    assert {line["smoothingType"] for line in lines} == {"none"}


def test_methods_have_the_colours_of_the_figures() -> None:
    colours = defined()["spec"]["section"]["customRunColors"]
    assert len(colours) == len(list(METHODS))
    assert [colour for key, colour in colours.items() if "%22quickdrop%22" in key] == [METHODS["quickdrop"].color]


@pytest.mark.parametrize("names", [("", "forgetting"), ("team", "")])
def test_names_are_needed(names: tuple[str, str]) -> None:
    with pytest.raises(BadInput, match="are needed"):
        definition(*names)


def test_the_package_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(BadInput, match=r"^dashboard wandb-workspaces is not installed: install quickdrop-bench\["):
        publish("team", "forgetting")


def test_publish_sends_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[dict[str, Any]] = []

    def execute_graphql(query: str, variables: dict[str, Any]) -> dict[str, Any]:
        got.append(variables)
        return {"upsertView": {"view": {"id": "view-id", "name": variables["name"]}}}

    server = SimpleNamespace(app_url="https://wandb.example", execute_graphql=execute_graphql)
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(_service_api=server))
    url = publish("team", "forgetting")
    (sent,) = got
    assert url.startswith("https://wandb.example/team/forgetting?nw=")
    assert (sent["entityName"], sent["projectName"]) == ("team", "forgetting")
    sent_sections = json.loads(sent["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sent_sections] == list(SHOWN)


@pytest.mark.parametrize(
    "error",
    [wandb.errors.UsageError("No API key configured.\nUse `wandb login`."), OSError("no route to host"), KeyError()],
)
def test_publish_says_in_one_sentence_what_failed(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> NoReturn:
        raise error

    monkeypatch.setattr(wandb, "Api", fail)
    with pytest.raises(BadInput, match=r"^dashboard team/forgetting: W&B did not save it \(.+\)\.$") as said:
        publish("team", "forgetting")
    assert "\n" not in str(said.value)
