"""A machine with a GPU, pretended: what `make gpu` starts there runs here, in processes of its own, with the stand-in in CuPy's place.

    environment = gpu_machine.environment(folder)      # for a subprocess; the processes that it starts have it, too

In each of them torch's "cuda" is the CPU and the models that are measured are tiny, so the times mean nothing. Packages that only training
from the command line or other tests need cannot be imported, and there is no network. Tested is that a command comes to its end.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
MISSING = ("jsonargparse", "docstring_parser", "typeshed_client", "py7zr", "tensorboard", "tensorboardX", "fastapi", "starlette", "uvicorn")
PADDED = 1027  # logits, which are padded as those of GPT-2 are


def environment(folder: Path) -> dict[str, str]:
    """The variables of a process on that machine; ``folder`` gets a file that Python runs when it starts."""
    (folder / "sitecustomize.py").write_text("from tests.standin import gpu_machine\ngpu_machine.pretend()\n", encoding="utf-8")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def pretend() -> None:
    """Make the running process one on that machine."""
    from tests.standin import installed

    stack = contextlib.ExitStack()
    stack.enter_context(installed())
    atexit.register(stack.close)
    sys.meta_path.insert(0, _Imports())
    sys.addaudithook(_no_network)


def _no_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo") and not isinstance(arguments[-1], str):
        raise OSError(f"there is no network here: {event} {arguments}")


class _Imports(MetaPathFinder):
    """Refuses what is missing there, and changes some modules as soon as they are imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        spec = PathFinder.find_spec(name, path, target) if name in CHANGES else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Changed(spec.loader, CHANGES[name])
        return spec


class _Changed(Loader):
    def __init__(self, loader: Loader, change: Callable[[Any], None]) -> None:
        self._loader, self._change = loader, change

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._change(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # `runpy` asks for the code


def _small_models(configurations: Any) -> None:
    table = configurations.CONFIGURATIONS
    small = replace(table["smoke"].model, block_size=8)
    for name, changes in (("course", {"dropout": 0.2, "activation": "relu"}), ("gpt2", {"vocab_size": PADDED, "tied_head": True})):
        table[name] = replace(table["smoke"], name=name, batch_size=2, model=replace(small, **changes))
    llama = replace(table["smollm2"].model, vocab_size=17, block_size=8, n_layer=1, n_head=2, n_kv_head=1, n_embd=16, n_inner=24)
    table["smollm2"] = replace(table["smoke"], name="smollm2", batch_size=2, model=llama)


def _small_products(matmul: Any) -> None:
    matmul.GPU_SIZES, matmul.gpu_peak.__defaults__ = (16, 32), (32,)


def _cuda_on_the_cpu(torch: Any) -> None:
    """torch's names for a GPU, on a torch that has none; what is compiled is run as it is."""

    class Queue(contextlib.nullcontext):  # type: ignore[type-arg]
        def wait_stream(self, other: Any) -> None:
            pass

    class Captured(contextlib.nullcontext):  # type: ignore[type-arg]
        def replay(self) -> None:
            pass

    def to(tensor: Any, *arguments: Any, **options: Any) -> Any:
        return move(tensor, *("cpu" if argument == "cuda" else argument for argument in arguments), **options)

    def autocast(device: str, *arguments: Any, **options: Any) -> Any:
        return cast("cpu", *arguments, **options)

    def compiled(model: Any) -> Any:
        return model

    move, torch.Tensor.to, cast, torch.autocast, torch.compile = torch.Tensor.to, to, torch.autocast, autocast, compiled
    torch.Tensor.pin_memory = torch.nn.Module.cuda = lambda self: self
    torch.cuda.Stream = torch.cuda.current_stream = Queue
    torch.cuda.CUDAGraph, torch.cuda.graph, torch.cuda.stream = Captured, Captured, lambda stream: stream
    torch.cuda.synchronize, torch.cuda.memory_reserved = lambda: torch.zeros(1), lambda: 1 << 20  # the zeros are seen by a profiler
    torch.profiler.ProfilerActivity = SimpleNamespace(CUDA=torch.profiler.ProfilerActivity.CPU)
    torch.autograd.DeviceType = SimpleNamespace(CUDA=torch.autograd.DeviceType.CPU)


CHANGES: dict[str, Callable[[Any], None]] = {
    "torch": _cuda_on_the_cpu,
    "benchmarks.configurations": _small_models,
    "benchmarks.matmul": _small_products,
    "gpt.training.speed": lambda speed: speed.SIZE.update(cupy=64),
}
