"""A pretended CUDA device on a machine without one: mixed devices are errors, and what waits for the device is counted.

Tensors of class G lie on the CPU but say that they are on cuda:0. The rules are PyTorch's: a CPU tensor beside a CUDA
tensor is an error unless it has no dimensions, or is an index. What it cannot see: kernels, numbers, memory, and CUDA's
own random streams. ``COUNTED`` has waits, copies and mixed devices by place in the package.
"""

from __future__ import annotations

import collections
import importlib
import time
import traceback
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode

DEV = torch.device("cuda", 0)
COUNTED = {kind: collections.Counter() for kind in ("waits", "copies", "mixed")}
PKG = "/quickdrop_bench/"
WAITING = {"item", "tolist", "nonzero", "is_nonzero", "unique", "unique_consecutive", "_unique2", "bincount", "equal"}
WAITING |= {"masked_select", "__bool__", "__float__", "__int__", "__index__", "__contains__"}
NEUTRAL = ("__get__", "__set__", "__len__", "__repr__", "__hash__", "__format__", "size", "dim", "numel", "nelement")
NEUTRAL += ("shape", "stride", "type", "is_floating_point", "is_complex", "is_contiguous", "element_size", "data_ptr")
NEUTRAL += ("as_subclass", "register_hook", "requires_grad_", "untyped_storage", "storage_offset", "copy_")
NEUTRAL += ("_has_compatible_shallow_copy_type", "register_post_accumulate_grad_hook", "backward", "grad")
NEUTRAL += ("run_backward", "__getitem__", "__setitem__")
"""Functions, or beginnings of their names, that do not compute with several tensors."""


def count(kind, what):
    found = (f for f in reversed(traceback.extract_stack()[:-2]) if PKG in f.filename and "pretend" not in f.filename)
    place = next((f"{f.filename.split(PKG)[1]}:{f.lineno} {(f.line or '')[:90]}" for f in found), "library")
    COUNTED[kind][what, place] += 1
    return place


def mixed(what):
    raise RuntimeError(f"Expected all tensors to be on the same device: {what} at {count('mixed', what)}")


def each(value, change):
    """A nest of lists, tuples and mappings with its tensors changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: each(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [each(v, change) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def plain(value):
    return each(value, lambda t: t.as_subclass(torch.Tensor) if isinstance(t, G) else t)


def cuda(value):
    return each(value, lambda t: t if isinstance(t, G) else t.as_subclass(G))


def tensors(*values):
    found = []
    each(values, found.append)
    return found


def is_device(value, kind="cuda"):
    return isinstance(value, (str, torch.device)) and torch.device(value).type == kind


def on_cpu(values):
    """Arguments in which no device is the pretended one."""
    return [torch.device("cpu") if is_device(v) else v for v in values]


def target_of(args, kwargs):
    """The device that ``to`` is asked for, if any."""
    target = kwargs.get("device")
    for value in args[1:]:
        if isinstance(value, (str, torch.device)):
            target = value
        elif isinstance(value, torch.Tensor):
            target = DEV if isinstance(value, G) else torch.device("cpu")
    return target


def moved(func, args, kwargs):
    """``to``."""
    source, target = args[0], target_of(args, kwargs)
    kwargs = kwargs | ({"device": "cpu"} if kwargs.get("device") is not None else {})
    out = func(plain(source) if target is not None else source, *map(plain, on_cpu(args[1:])), **kwargs)
    if target is None:
        return cuda(out) if isinstance(source, G) else out
    if is_device(target):
        if not isinstance(source, G):
            count("copies", "H2D")
        return cuda(out.clone() if out is source else out)
    if isinstance(source, G):
        count("waits", "to(cpu)")
    return plain(out)


def check_index(tensor, index):
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, list):
            count("copies", "H2D list index")
        elif isinstance(part, torch.Tensor):
            if part.dtype in (torch.bool, torch.uint8):
                count("waits", "bool index")
            if not isinstance(part, G):
                count("copies", "H2D index")
            elif not isinstance(tensor, G):
                mixed("cuda index of cpu tensor")


class G(torch.Tensor):
    def __deepcopy__(self, memo):
        copy = self.detach().as_subclass(torch.Tensor).clone().as_subclass(G)
        memo[id(self)] = torch.nn.Parameter(copy, self.requires_grad) if getattr(self, "_is_param", False) else copy
        return memo[id(self)]

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        told = {
            torch.Tensor.device.__get__: DEV,
            torch.Tensor.is_cuda.__get__: True,
            torch.Tensor.is_cpu.__get__: False,
        }
        if func in told:
            return told[func]
        with torch._C.DisableTorchFunctionSubclass():
            if name == "numpy":
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            if name == "cpu":
                count("waits", "cpu()")
                return plain(func(*args, **kwargs))
            if name == "register_hook":
                return func(args[0], lambda gradient: plain(args[1](cuda(gradient))))
            if name == "to":
                return moved(func, args, kwargs)
            return computed(func, name, args, kwargs)


def computed(func, name, args, kwargs):
    on_device = [isinstance(t, G) for t in tensors(args, kwargs)]
    if (name in WAITING and any(on_device)) or (
        name == "repeat_interleave" and "output_size" not in kwargs and isinstance((*args, None)[1], torch.Tensor)
    ):
        count("waits", name)
    if name in ("__getitem__", "__setitem__"):
        check_index(args[0], args[1])
    elif name == "copy_" and isinstance(args[0], G) != isinstance(args[1], G):
        count("copies", "copy_")
    elif any(on_device) and not name.startswith(NEUTRAL):
        if any(not isinstance(t, G) and t.dim() > 0 for t in tensors(args, kwargs)):
            mixed(name)
    device = kwargs.get("device")
    out = func(*args, **(kwargs | ({} if device is None else {"device": "cpu"})))
    if device is not None and not is_device(device):
        return plain(out)
    if out is None or name in ("backward", "run_backward") or (args and out is args[0]):
        return out
    return cuda(out)


class Factories(TorchFunctionMode):
    """device=cuda in factory functions, on tensors that are not G yet."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        if any(issubclass(t, G) for t in types) and name not in ("arange", "tensor"):
            return func(*args, **kwargs)
        if name == "to" and args and isinstance(args[0], torch.Tensor) and is_device(target_of(args, kwargs)):
            return moved(func, args, kwargs)
        if not is_device(kwargs.get("device")):
            return func(*args, **kwargs)
        if name in ("tensor", "as_tensor"):
            count("copies", "H2D torch.tensor")
        return cuda(func(*args, **(kwargs | {"device": "cpu"})))


def place(module):
    for name in getattr(module, "_defaults", ()):
        setattr(module, name, cuda(getattr(module, name)))
    for part in module.modules():
        for name, own in part._parameters.items():
            if own is not None and not isinstance(own, G):
                part._parameters[name] = torch.nn.Parameter(own.detach().as_subclass(G), own.requires_grad)
        part._buffers.update({name: cuda(own) for name, own in part._buffers.items() if own is not None})
    return module


class Event:
    def __init__(self, **_):
        self.moment = None

    def record(self):
        self.moment = time.perf_counter()

    def elapsed_time(self, other):
        return (other.moment - self.moment) * 1e3


def opened_with(opener):
    """A reader of files that puts tensors on the pretended device if that is asked for."""

    @contextmanager
    def opened(path, device="cpu"):
        with opener(path) as file:
            found = {name: getattr(file, name) for name in ("keys", "get_slice", "metadata")}
            put = cuda if is_device(device) else plain
            yield SimpleNamespace(get_tensor=lambda name: put(file.get_tensor(name)), **found)

    return opened


READERS = ("core.files", "federation.history", "store.artifacts", "serving.run")
"""Modules that read tensors from files."""


def install_readers():
    modules = [importlib.import_module(f"quickdrop_bench.{name}") for name in READERS]
    opened, loaded = opened_with(modules[0].open_tensors), importlib.import_module("safetensors.torch").load_file
    for module in modules:
        if hasattr(module, "open_tensors"):
            module.open_tensors = opened
        if hasattr(module, "load_file"):
            module.load_file = lambda p, device="cpu": (cuda if is_device(device) else plain)(loaded(p, device="cpu"))


def install():
    import lightning.fabric.accelerators.cpu as accelerator
    import lightning.fabric.strategies.single_device as strategy

    fork, to = torch.random.fork_rng, torch.nn.Module.to
    torch.cuda.Event = Event
    torch.cuda.get_device_name = lambda device=None: "Pretended GPU"
    torch.cuda.synchronize = lambda *_: count("waits", "synchronize")
    torch.random.fork_rng = lambda devices=None, **options: fork(devices=[])
    torch.nn.Module.to = lambda self, *a, **k: (
        place(self) if any(map(is_device, (*a, *k.values()))) else to(self, *a, **k)
    )
    accelerator.CPUAccelerator.setup_device = lambda self, device: None
    strategy.SingleDeviceStrategy.root_device = property(lambda self: DEV)
    strategy.SingleDeviceStrategy.module_to_device = lambda self, module: place(module)
    install_readers()
    Factories().__enter__()


def run_and_count(lines):
    """Run command lines one after the other; exit codes and what was counted, as data of JSON."""
    from quickdrop_bench.cli.main import main

    install()
    codes = [main(line) for line in lines]
    found = {kind: [[*where[::-1], times] for where, times in counts.items()] for kind, counts in COUNTED.items()}
    return {"codes": codes, **found}
