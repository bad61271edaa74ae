"""The commands by name, without the libraries that it takes seconds to import."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from quickdrop_bench import __version__

__all__ = ["OVERVIEW", "PROGRAM", "SUMMARIES", "overview", "top_parser"]

PROGRAM = "quickdrop-bench"

OVERVIEW = ("-h", "--help", "--version")
"""First arguments that are answered at once."""

SUMMARIES = {
    "table": "measure and render a table of the paper",
    "figure": "measure and draw a figure of the paper",
    "sweep": "measure and draw over scales, alphas, clients, data sets",
    "train": "train a federation and save its artifacts",
    "unlearn": "forget a class or a client on a trained federation",
    "relearn": "learn again what was forgotten",
    "evaluate": "accuracies of a trained federation's model",
    "show": "what a trained federation is, and what it forgot",
    "export": "write a model as safetensors, TorchScript or ONNX",
    "distribution": "show who holds which classes",
    "report": "write one HTML page over all rows",
    "dashboard": "write a W&B workspace with panels for all runs",
    "methods": "list the unlearning methods",
    "datasets": "list the data sets",
    "presets": "list the presets",
}


def top_parser(kind: type[ArgumentParser] = ArgumentParser) -> ArgumentParser:
    """The program's parser, without its commands."""
    description = "Benchmarks of federated unlearning."
    return kind(prog=PROGRAM, description=description, version=__version__, allow_abbrev=False)


def overview(argv: Sequence[str]) -> None:
    """Print what ``--help`` or ``--version`` asks for, and exit."""
    parser = top_parser()
    commands = parser.add_subcommands(required=True, dest="command")
    for name, text in SUMMARIES.items():
        commands.add_subcommand(name, ArgumentParser(description=text), help=text)
    parser.parse_args(list(argv))
