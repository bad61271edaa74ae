"""A pretended CUDA device on a machine without one: mixed devices are errors, and what waits for the device is counted.

Tensors of class G lie on the CPU but say that they are on cuda:0. The rules are PyTorch's: a CPU tensor beside a CUDA
tensor is an error unless it has no dimensions, or is an index. What it cannot see: kernels, numbers, memory, and CUDA's
own random streams. ``WAITS`` and ``COPIES`` count by place in the package.
"""

from __future__ import annotations

import collections
import traceback

import torch
from torch.overrides import TorchFunctionMode

DEV = torch.device("cuda", 0)
WAITS: collections.Counter = collections.Counter()
COPIES: collections.Counter = collections.Counter()
MIXED: collections.Counter = collections.Counter()
PKG = "/quickdrop_bench/"


def where(skip=0):
    for f in reversed(traceback.extract_stack()[:-2]):
        if PKG in f.filename and "pretend" not in f.filename:
            return f"{f.filename.split(PKG)[1]}:{f.lineno} {f.line[:90] if f.line else ''}"
    return "library"


WAIT_FUNCS = {
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.__bool__,
    torch.Tensor.__float__,
    torch.Tensor.__int__,
    torch.Tensor.__index__,
    torch.Tensor.__contains__,
    torch.nonzero,
    torch.Tensor.nonzero,
    torch.unique,
    torch.Tensor.unique,
    torch.Tensor.unique_consecutive,
    torch.unique_consecutive,
    torch.bincount,
    torch.Tensor.bincount,
    torch.equal,
    torch.Tensor.is_nonzero,
    torch.masked_select,
    torch.Tensor.masked_select,
}


def iscuda(x):
    return isinstance(x, G)


def flat(args):
    for a in args:
        if isinstance(a, torch.Tensor):
            yield a
        elif isinstance(a, (list, tuple)):
            yield from flat(a)
        elif isinstance(a, dict):
            yield from flat(a.values())


def plain(x):
    if isinstance(x, G):
        return x.as_subclass(torch.Tensor)
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*map(plain, x))
    if isinstance(x, (list, tuple)):
        return type(x)(map(plain, x))
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    return x


def cuda(x):
    if isinstance(x, torch.Tensor) and not isinstance(x, G):
        return x.as_subclass(G)
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*map(cuda, x))
    if isinstance(x, (list, tuple)):
        return type(x)(map(cuda, x))
    if isinstance(x, dict):
        return {k: cuda(v) for k, v in x.items()}
    return x


def to_dev(x):
    return isinstance(x, (str, torch.device)) and torch.device(x).type == "cuda"


def to_cpu(x):
    return isinstance(x, (str, torch.device)) and torch.device(x).type == "cpu"


INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}
PROPS = {torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__}
NEUTRAL = (
    "__get__",
    "__set__",
    "size",
    "dim",
    "numel",
    "__len__",
    "shape",
    "stride",
    "is_floating_point",
    "as_subclass",
    "__repr__",
    "register_hook",
    "requires_grad_",
    "nelement",
    "is_complex",
    "__hash__",
    "type",
    "element_size",
    "data_ptr",
    "is_contiguous",
    "_has_compatible_shallow_copy_type",
    "register_post_accumulate_grad_hook",
    "untyped_storage",
    "storage_offset",
    "__format__",
)


class G(torch.Tensor):
    def __deepcopy__(self, memo):
        t = self.detach().as_subclass(torch.Tensor).clone().as_subclass(G)
        if getattr(self, "_is_param", False):
            t = torch.nn.Parameter(t, self.requires_grad)
        memo[id(self)] = t
        return t

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if func == torch.Tensor.device.__get__:
            return DEV
        if func == torch.Tensor.is_cuda.__get__:
            return True
        if func == torch.Tensor.is_cpu.__get__:
            return False
        with torch._C.DisableTorchFunctionSubclass():
            if name == "cpu":
                WAITS[("cpu()", where())] += 1
                return plain(func(*args, **kwargs))
            if name == "register_hook":
                hook = args[1]

                def wrapped(g):
                    r = hook(cuda(g))
                    return None if r is None else plain(r)

                return func(args[0], wrapped)
            if name == "numpy":
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            if name == "to":
                target = kwargs.get("device")
                rest = list(args[1:])
                for a in rest:
                    if isinstance(a, (str, torch.device)):
                        target = a
                    if isinstance(a, torch.Tensor):
                        target = DEV if iscuda(a) else torch.device("cpu")
                rest = [torch.device("cpu") if to_dev(a) else (plain(a)) for a in rest]
                if "device" in kwargs and kwargs["device"] is not None:
                    kwargs["device"] = "cpu"
                src = args[0]
                out = func(plain(src) if target is not None else src, *rest, **kwargs)
                if target is None:
                    return cuda(out) if iscuda(src) else out
                if to_dev(target):
                    if not iscuda(src):
                        COPIES[("H2D", where())] += 1
                    return cuda(out)
                if iscuda(src):
                    WAITS[("to(cpu)", where())] += 1
                return plain(out)
            if func in WAIT_FUNCS or name in (
                "item",
                "tolist",
                "__bool__",
                "__float__",
                "__int__",
                "__index__",
                "nonzero",
                "unique",
                "unique_consecutive",
                "bincount",
                "_unique2",
                "equal",
                "__contains__",
            ):
                if any(iscuda(t) for t in flat(args)):
                    WAITS[(name, where())] += 1
            if name == "__getitem__" or name == "__setitem__":
                idx = args[1] if isinstance(args[1], tuple) else (args[1],)
                for i in idx:
                    if isinstance(i, torch.Tensor):
                        if i.dtype in (torch.bool, torch.uint8):
                            WAITS[("bool index", where())] += 1
                        if not iscuda(i):
                            COPIES[("H2D index", where())] += 1
                        if iscuda(i) and not iscuda(args[0]):
                            MIXED[("cuda index of cpu tensor", where())] += 1
                            raise RuntimeError(
                                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
                            )
                    elif isinstance(i, list):
                        COPIES[("H2D list index", where())] += 1
            elif name == "copy_":
                a, b = args[0], args[1]
                if iscuda(a) != iscuda(b):
                    COPIES[("copy_", where())] += 1
                return func(*args, **kwargs)
            elif (
                name == "repeat_interleave"
                and "output_size" not in kwargs
                and len(args) > 1
                and isinstance(args[1], torch.Tensor)
            ):
                WAITS[("repeat_interleave", where())] += 1
            elif not any(name.startswith(n) for n in NEUTRAL) and name not in ("backward", "grad", "run_backward"):
                ts = list(flat((args, kwargs)))
                if any(map(iscuda, ts)):
                    for t in ts:
                        if not iscuda(t) and t.dim() > 0 and t.device.type == "cpu":
                            MIXED[(name, where())] += 1
                            raise RuntimeError(f"Expected all tensors to be on the same device: {name} at {where()}")
            if kwargs.get("device") is not None:
                d = kwargs["device"]
                kwargs["device"] = "cpu"
                out = func(*args, **kwargs)
                return cuda(out) if to_dev(d) else plain(out)
            out = func(*args, **kwargs)
            if name in ("backward", "run_backward", "register_hook") or out is None:
                return out
            if isinstance(out, torch.Tensor) and args and out is args[0]:
                return out
            return (
                cuda(out) if isinstance(out, (torch.Tensor, tuple, list)) and not name.startswith("__get__x") else out
            )


class Factories(TorchFunctionMode):
    """device=cuda in factory functions, on tensors that are not G yet."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if any(issubclass(t, G) for t in types) and name not in ("arange", "tensor"):
            return func(*args, **kwargs)
        if name == "to" and args and isinstance(args[0], torch.Tensor):
            target = kwargs.get("device")
            for a in args[1:]:
                if isinstance(a, (str, torch.device)):
                    target = a
            if target is not None and to_dev(target):
                COPIES[("H2D", where())] += 1
                rest = [torch.device("cpu") if to_dev(a) else a for a in args[1:]]
                if "device" in kwargs:
                    kwargs["device"] = "cpu"
                return func(args[0], *rest, **kwargs).clone().as_subclass(G)
            return func(*args, **kwargs)
        if kwargs.get("device") is not None and to_dev(kwargs["device"]):
            kwargs["device"] = "cpu"
            if name in ("tensor", "as_tensor"):
                COPIES[("H2D torch.tensor", where())] += 1
            out = func(*args, **kwargs)
            return out.as_subclass(G) if not isinstance(out, G) else out
        return func(*args, **kwargs)


def place(module):
    for n in getattr(module, "_defaults", ()):
        setattr(module, n, cuda(getattr(module, n)))
    for m in module.modules():
        for n, p in list(m._parameters.items()):
            if p is not None and not isinstance(p, G):
                m._parameters[n] = torch.nn.Parameter(p.detach().as_subclass(G), p.requires_grad)
        for n, b in list(m._buffers.items()):
            if b is not None:
                m._buffers[n] = b.as_subclass(G)
    return module


class Event:
    def __init__(self, **k):
        self.t = None

    def record(self):
        import time

        self.t = time.perf_counter()

    def elapsed_time(self, other):
        return (other.t - self.t) * 1e3


def install():
    import lightning.fabric.strategies.single_device as sd

    torch.cuda.Event = Event
    old_fork = torch.random.fork_rng
    torch.random.fork_rng = lambda devices=None, **k: old_fork(devices=[])
    torch.cuda.get_device_name = lambda d=None: "Pretended GPU"

    def sync(*a):
        WAITS[("synchronize", where())] += 1

    torch.cuda.synchronize = sync
    old_to = torch.nn.Module.to

    def module_to(self, *a, **k):
        if any(to_dev(x) for x in (*a, *k.values())):
            return place(self)
        return old_to(self, *a, **k)

    torch.nn.Module.to = module_to
    import lightning.fabric.accelerators.cpu as ac

    ac.CPUAccelerator.setup_device = lambda self, device: None
    sd.SingleDeviceStrategy.root_device = property(lambda self: DEV)
    sd.SingleDeviceStrategy.module_to_device = lambda self, module: place(module)
    import quickdrop_bench.core.files as files

    old_open = files.open_tensors
    import quickdrop_bench.federation.history as hist
    import quickdrop_bench.store.artifacts as art

    class Opened:
        def __init__(self, cm, dev):
            self.cm, self.dev = cm, dev

        def __enter__(self):
            self.f = self.cm.__enter__()
            return self

        def __exit__(self, *a):
            return self.cm.__exit__(*a)

        def get_tensor(self, n):
            t = self.f.get_tensor(n)
            return t.as_subclass(G) if to_dev(self.dev) else t

        def __getattr__(self, n):
            return getattr(self.f, n)

    def open_tensors(path, device="cpu", *a, **k):
        return Opened(old_open(path, "cpu", *a, **k), device)

    for m in (files, art, hist):
        if hasattr(m, "open_tensors"):
            m.open_tensors = open_tensors
    import quickdrop_bench.serving.run as srun

    srun.open_tensors = open_tensors
    old_load = art.load_file
    art.load_file = lambda p, device="cpu": {
        n: (v.as_subclass(G) if to_dev(device) else v) for n, v in old_load(p, device="cpu").items()
    }
    mode = Factories()
    mode.__enter__()
    return mode


def run_and_count(lines):
    """Run command lines one after the other; exit codes and what was counted, as data of JSON."""
    from quickdrop_bench.cli.main import main

    install()
    codes = [main(line) for line in lines]
    counts = {"waits": WAITS, "copies": COPIES, "mixed": MIXED}
    found = {name: [[place, what, times] for (what, place), times in kinds.items()] for name, kinds in counts.items()}
    return {"codes": codes, **found}
