"""One parse of the command line, and a pure merge of what it says with presets into options."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args

from jsonargparse import ArgumentParser, Namespace

from quickdrop_bench.cli.parser import COMMANDS, PROGRAM, Option, declared, of_methods, spelled
from quickdrop_bench.core.errors import BadInput, positive
from quickdrop_bench.data.backdoor import Backdoor
from quickdrop_bench.data.datasets import DATASETS
from quickdrop_bench.harness.exhibits import exhibits
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.harness.presets import (
    flat,
    method_sections,
    preset_contents,
    preset_values,
    presets,
    read_options,
)
from quickdrop_bench.harness.run_spec import LETTERS
from quickdrop_bench.methods import METHODS, Method

Values = Mapping[str, Any]
"""Options by key, those of methods as ``quickdrop.unlearn_lr``."""

_SHOWN = {int: "N", float: "X", Path: "PATH", bool: "true|false"}
"""How ``--help`` calls values."""

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}
"""How refusals call values."""

_PRESETS = "Defaults here are the paper's; the preset changes many of them: --print_config shows the values that count."

_DRIVERS = ("/dev/nvidiactl", "/dev/dxg")


class Parser(ArgumentParser):
    """Errors become one sentence instead of usage and exit."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise :class:`BadInput`."""
        command = self.prog.removeprefix(f"{PROGRAM} ")
        raise _as_bad_input(" ".join(str(message).split()).removesuffix("."), command)


def _as_bad_input(message: str, command: str) -> BadInput:
    """Put a parser's message into the form of all others: option, value, what is allowed."""
    if found := re.search(r'key "([\w.]+)": (.*?)\s*(?:Given value type: .*)?(?:Got|Given) value:\s*(.*)$', message):
        key, reason, value = found.groups()
        kinds = [_KINDS.get(kind, kind) for kind in re.findall(r"<class '(\w+)'>", reason)]
        allowed = f"{' or '.join(dict.fromkeys(kinds))} is needed" if kinds else reason.rstrip(". ")
        return BadInput(command if key == "number" else f"--{key.replace('_', '-')}", value, allowed)
    if found := re.search(r'key "([\w.]+)": (.*)$', message):
        return BadInput(f"--{found[1].replace('_', '-')}", "is not usable", found[2])
    if found := re.search(r"argument (--[\w.-]+): is given twice$", message):
        return BadInput(found[1], "is given twice", "several are written as 9,3")
    return BadInput("command line", "not understood", message)


class _Once(argparse.Action):
    """What a second one would take the place of."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if namespace.get(self.dest) is not None:
            raise argparse.ArgumentError(self, "is given twice")
        setattr(namespace, self.dest, values)


class _MethodsHelp(argparse.Action):
    """Print the settings of the methods, which ``--help`` leaves out."""

    def __call__(self, parser: Any, *args: Any) -> NoReturn:
        shown = Parser(
            prog=parser.prog, usage=argparse.SUPPRESS, add_help=False, formatter_class=argparse.HelpFormatter
        )
        for name in METHODS:
            group = shown.add_argument_group(name, METHODS[name].summary)
            for option in of_methods(name):
                _add(group, option)
        shown.print_help()
        sys.exit(0)


def _add(parser: Any, option: Option, *, hidden: bool = False) -> None:
    """Declare an option to a parser, or to a group of one."""
    said = str(option.default).lower() if option.type is bool else option.default
    default = "" if said in (None, "") or option.is_flag else f" (default: {said})"
    text = argparse.SUPPRESS if hidden else f"{option.help}{default}".replace("%", "%%")
    if not option.name.startswith("--"):
        parser.add_argument(option.name, type=option.type, help=text)
    elif option.is_flag:
        parser.add_argument(option.name, action="store_true", help=text)
    else:
        once: Any = {"action": _Once} if option.key.startswith("forget_") else {}
        kind = get_args(option.type) or (option.type,)
        shown = _SHOWN.get(kind[0], "TEXT") if len(kind) == 1 or kind[1] is NoneType else "A,B"
        parser.add_argument(option.name, dest=option.key, type=option.type, help=text, metavar=shown, **once)


def _parser(command: str) -> Parser:
    own = COMMANDS[command]
    named = [option.name.upper() for option in own.options if not option.name.startswith("--")]
    parser = Parser(
        prog=f"{PROGRAM} {command}",
        usage=" ".join(["%(prog)s", *named, "[OPTIONS]"]),
        description=own.summary,
        epilog=_PRESETS if own.has_preset else None,
        allow_abbrev=False,
        print_config=None,  # it would print what was typed alone
        formatter_class=argparse.HelpFormatter,
    )
    for option in own.options:
        _add(parser, option)
    if own.has_preset:
        parser.add_argument(
            "--config",
            type=str,
            action="append",
            metavar="FILE",
            help="YAML file with options; what is typed overrides it",
        )
        parser.add_argument("--print_config", action="store_true", help="print all options as such a file, and stop")
    if own.methods:
        parser.add_argument(
            "--help-methods", action=_MethodsHelp, nargs=0, help="show the settings of the methods, and stop"
        )
        for option in of_methods(*METHODS):
            _add(parser, option, hidden=True)
    return parser


@dataclass(frozen=True)
class CommandLine:
    """What a user asked for.

    Attributes:
        command: its name.
        typed: what stands on the command line.
        files: what ``--config`` files say; later files win.
        preset: the one that is meant; None for commands that have none.
        prints_config: whether the options are to be printed, and nothing done.
    """

    command: str
    typed: Values
    files: Values
    preset: str | None
    prints_config: bool = False

    @property
    def said(self) -> Values:
        """What files and the command line say."""
        return {**self.files, **self.typed}

    def options(self, section: str = "", above: Values | None = None, *, own: bool = True) -> Namespace:
        """The options that count.

        Args:
            section: of the preset's files that stands above their other settings, e.g. ``table4``.
            above: values that stand above all others.
            own: whether what the user says counts.
        """
        said = {**(self.said if own else {}), **(above or {})}
        if self.preset is None:
            return self.over({}, said)
        dataset = said.get("dataset") or of_preset(self.preset, None, section).get("dataset")
        below, known = of_preset(self.preset, dataset, section), declared(self.command)
        if said.get("protocol") in LETTERS:  # of the preset's settings of methods, none counts
            known = {key: option for key, option in known.items() if "." not in key}
        return self.over({key: value for key, value in below.items() if key in known}, said)

    @property
    def section(self) -> str:
        """Of the preset's files that the command is about, e.g. ``table4`` or ``sweep``."""
        return f"{self.command}{self.typed.get('number', '')}"

    def as_file(self) -> dict[str, Any]:
        """The options that count, as a configuration file has them."""
        found: dict[str, Any] = {}
        options = self.options(self.section)
        for key in (key for key, option in declared(self.command).items() if option.name.startswith("--")):
            method, _, name = key.rpartition(".")
            value = str(options[key]) if isinstance(options[key], Path) else options[key]
            (found.setdefault(method, {}) if method else found)[name] = value
        return found

    def over(self, below: Values, said: Values | None = None) -> Namespace:
        """The options: those given by default, then some values, then what the user says.

        Args:
            below: values that stand above the options' defaults.
            said: in place of what the user says.
        """
        said = self.said if said is None else said
        known = declared(self.command)
        preset = {"preset": self.preset} if self.preset else {}
        defaults = {key: option.default for key, option in known.items()}
        values: dict[str, Any] = {**defaults, **below, **said, **preset}
        # A preset's bound gives way to reflection; one that the user gives stays, and the method refuses it.
        for key in [key for key in values if key.endswith(".unlearn_stop_loss") and key not in said]:
            if values.get(key.replace("unlearn_stop_loss", "ascent")) == "reflection":
                values[key] = None
        # Who has a backdoor is forgotten, unless another client is named.
        if values.get("backdoor") and "forget_client" in known and "forget_client" not in {*below, *said}:
            values["forget_client"] = str(Backdoor.parse(values["backdoor"]).client)
        options = Namespace()
        for key, value in values.items():
            options[key] = _at_home(known[key], value) if isinstance(value, Path) else value
        return options


def parse(argv: Sequence[str]) -> CommandLine:
    """Read a command line and the files that it names.

    Raises:
        BadInput: an option is unknown, or its value has another type.
    """
    command, *rest = argv or [""]
    if command not in COMMANDS:
        raise BadInput("command", command or "is missing", f"use one of {', '.join(COMMANDS)}")
    parser = _parser(command)
    typed = dict(vars(parser.parse_args(rest, defaults=False).as_flat()))
    paths, prints = typed.pop("config", ()), typed.pop("print_config", False)
    known = declared(command)
    for key, value in typed.items():
        if value == "":
            raise BadInput(spelled(key), "''", "it is empty; give a value, or leave the option out")
        known[key].check(value)
    files: dict[str, Any] = {}
    for path in paths:
        files |= _read(parser, known, path)
    preset = None
    if COMMANDS[command].has_preset:
        preset = typed.get("preset") or files.get("preset") or _default_preset()
    return CommandLine(command, typed, files, preset, prints)


def _read(parser: Parser, known: Mapping[str, Option], name: str) -> dict[str, Any]:
    """The options in a configuration file.

    Raises:
        BadInput: it cannot be read, or says something that is no option of the command.
    """
    try:
        content = read_options(Path(name).expanduser())
    except OSError as error:
        raise BadInput("--config", name, f"it cannot be read ({error.strerror})") from error
    except (ValueError, RuntimeError) as error:
        raise BadInput("--config", name, str(error)) from error
    for key in _keys(content):
        if key not in known or not known[key].name.startswith("--"):
            allowed = f"this command has no option {key} that a file could set; --print_config prints those that it has"
            raise BadInput("--config", name, allowed)
    values = flat(content)
    parsed = parser.parse_object({**values, "number": 0} if "number" in known else values, defaults=False)
    found = {key: value for key, value in vars(parsed.as_flat()).items() if key in values}
    for key, value in found.items():
        known[key].check(value)
    return found


def _keys(values: Values) -> list[str]:
    """All that a file sets, and its sections but for those of methods."""
    others = [key for key, value in values.items() if isinstance(value, dict) and key not in method_sections()]
    return [*others, *flat(values)]


@cache
def _of_presets() -> set[str]:
    """What a preset may set: options of any command, and what tables and figures have of their own."""
    return {key for name in COMMANDS if COMMANDS[name].has_preset for key in declared(name)} | {*exhibits()}


def of_preset(preset: str, dataset: str | None, section: str) -> Values:
    """What a preset sets, see :func:`~quickdrop_bench.harness.presets.preset_values`.

    Raises:
        BadInput: there is no such preset, or it sets what nothing takes.
    """
    for values in preset_contents(preset, dataset, section):
        for key in (key for key in _keys(values) if key not in _of_presets()):
            raise BadInput("--preset", preset, f"it sets {key}, which is no option, table or figure")
    return preset_values(preset, dataset, section)


def has_cuda() -> bool:
    """Whether there is a CUDA device; torch, which takes seconds to import, is asked only where there is a driver."""
    if "torch" not in sys.modules and sys.platform != "win32" and not any(map(os.path.exists, _DRIVERS)):
        return False
    import torch

    return torch.cuda.is_available()


def on_gpu(args: Namespace) -> bool:
    """Whether a command computes on a CUDA device."""
    return args.accelerator in ("auto", "cuda", "gpu") and has_cuda()


def arithmetic(args: Namespace) -> str:
    """What decides the rounding of a federation: its precision, the kind of device, and TF32.

    Federations that differ in it never share a folder or a speed-up.
    """
    place = " on CUDA" if on_gpu(args) else " on MPS" if args.accelerator == "mps" else ""
    return str(args.precision) + place + (" with TF32" if args.get("tf32") else "")


def _default_preset() -> str:
    """``paper`` where a GPU is found, else ``quick``; said before anything else."""
    preset = "paper" if has_cuda() else "quick"
    others = " or ".join(f"--preset {name}" for name in presets() if name != preset)
    print(f"preset {preset} (others: {others})", file=sys.stderr)
    return preset


def _at_home(option: Option, path: Path) -> Path:
    """``~`` in paths, which shells leave alone in ``--option=~/x``, and files always."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise BadInput(option.name, path, "there is no such user's home") from error


def options_of(argv: Sequence[str], section: str = "") -> Namespace:
    """The options of a command line, with a section of its preset."""
    return parse(argv).options(section)


def seeds_of(args: Namespace) -> tuple[int, ...]:
    """``--seeds`` as numbers; a lone number n means 1 to n, and ``n,`` the seed n."""
    text = str(args.seeds)
    try:
        numbers = [int(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        raise BadInput("--seeds", text, "numbers as 1,2,3 or a count are needed") from None
    if "," not in text:
        positive("--seeds", numbers[0], at_least=1, at_most=10_000)
        return tuple(range(1, numbers[0] + 1))
    if len(set(numbers)) < len(numbers) or not 0 <= min(numbers) <= max(numbers) < 2**63:
        raise BadInput("--seeds", text, "every seed must be at least 0, below 2^63 and given once")
    return tuple(numbers)


def federation_spec(args: Namespace) -> FederationSpec:
    """The federation that the options describe."""
    _ = DATASETS[args.dataset]
    return FederationSpec(**{f.name: args[f.name] for f in fields(FederationSpec)})


def methods_of(args: Namespace) -> dict[str, Method]:
    """Hyper-parameters of every registered method, from the options ``--<method>.<field>``."""
    built = {}
    for name in METHODS:
        try:
            built[name] = METHODS[name](**vars(args.get(name.replace("-", "_"), Namespace())))
        except BadInput as error:
            field = error.option.rsplit(".", 1)[-1].replace("_", "-")
            raise BadInput(f"--{name}.{field}", error.value, error.allowed) from error
    return built
