"""Serve deletion requests on a trained federation: load a run, make a request, get the model."""

from quickdrop_bench.serving.export import FORMATS, export
from quickdrop_bench.serving.log import Entry
from quickdrop_bench.serving.run import TrainedRun
from quickdrop_bench.store.find import find_run

__all__ = ["FORMATS", "Entry", "TrainedRun", "export", "find_run"]
