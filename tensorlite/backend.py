"""Where arrays live: NumPy on the CPU, CuPy on an NVIDIA GPU.

The engine does not branch on the library. An op takes the module of its argument,

    xp = array_module(x)

and the same lines then run on both. Only the *creation* of an array names a device.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

OLDEST_CUPY = 14  # the first version with the graphs and types that are used here
INSUFFICIENT_DRIVER = 35  # cudaErrorInsufficientDriver

_NAMES = {"numpy": "numpy", "cpu": "numpy", "cupy": "cupy", "cuda": "cupy"}  # ours and torch's -> ours

Array = Any  # numpy.ndarray or cupy.ndarray: they share their methods, not a base class


class DeviceUnavailableError(RuntimeError):
    """The device asked for cannot be used on this machine; the message says what is missing."""


def array_module(x: Array) -> Any:
    """The module, ``numpy`` or ``cupy``, whose functions take ``x``. For a Python number it is NumPy."""
    if isinstance(x, np.ndarray):
        return np
    cupy = sys.modules.get("cupy")  # if CuPy was never imported, x cannot be an array of it
    if cupy is not None and isinstance(x, cupy.ndarray):
        return cupy
    return np


def to_numpy(x: Array) -> np.ndarray:
    """``x`` as a NumPy array. For a CuPy array this waits until all kernels queued before it have run."""
    return np.asarray(x) if array_module(x) is np else x.get()


class PoolMemory(NamedTuple):
    """Bytes of a GPU's memory. CuPy keeps the memory of freed arrays in a pool, for new arrays.

    Attributes:
        used: the size of the arrays that exist.
        reserved: the size of the pool. It does not shrink by itself, so this is also the largest size it ever had.
        limit: the largest size that the pool may have.
        free: how much new arrays can still get.
    """

    used: int
    reserved: int
    limit: int
    free: int


class Device:
    """A place for arrays: ``Device("numpy")``, ``Device("cupy")`` or ``Device("cupy:1")``; also ``tensorlite.device``.

    torch's names mean the same: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, and the number of a GPU alone. None is the CPU. ``"cupy"`` without a
    number is the GPU in use (`use`), at first GPU 0. A Device object needs no driver. The first array created on it does.

    Raises:
        ValueError: for any other name.
    """

    __slots__ = ("index", "name")
    name: str
    index: int

    def __init__(self, spec: str | int | Device | None = "numpy", index: int | None = None) -> None:
        if isinstance(spec, Device):
            self.name, self.index = spec.name, spec.index
            return
        text = "numpy" if spec is None else f"cupy:{spec}" if isinstance(spec, int) else spec
        text = text if index is None else f"{text}:{index}"
        name, colon, number = text.partition(":")
        self.name = _NAMES.get(name, "")
        self.index = int(number) if number.isdecimal() else _gpu_in_use() if self.name == "cupy" else 0
        if not self.name or (colon and not number.isdecimal()) or (self.name == "numpy" and self.index):
            raise ValueError(f"unknown device {text!r}: it is 'numpy' or 'cpu', 'cupy' or 'cuda', 'cupy:<index>' or 'cuda:<index>'.")

    @property
    def type(self) -> str:
        """torch's name: ``"cpu"`` or ``"cuda"``."""
        return "cpu" if self.name == "numpy" else "cuda"

    @property
    def module(self) -> Any:
        """``numpy``, or ``cupy`` after a check that it works here.

        Raises:
            DeviceUnavailableError: when CuPy is not installed, or finds no GPU or driver.
        """
        return np if self.name == "numpy" else _import_cupy(self.index)

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """``x`` as an array of ``dtype`` on this device; copied only if necessary."""
        if self.name == "numpy":
            return np.asarray(x if array_module(x) is np else to_numpy(x), dtype=dtype)
        cupy = self.module
        with cupy.cuda.Device(self.index):
            return cupy.asarray(x, dtype=dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """An array of zeros, created on this device without a copy from the host."""
        if self.name == "numpy":
            return np.zeros(shape, dtype)
        cupy = self.module
        with cupy.cuda.Device(self.index):
            return cupy.zeros(shape, dtype)

    # --- for GPUs only ---

    @property
    def compute_capability(self) -> tuple[int, int]:
        """The GPU's compute capability, major and minor: (9, 0) is Hopper."""
        digits = str(self.module.cuda.Device(self.index).compute_capability)
        return int(digits[:-1]), int(digits[-1])

    def use(self) -> None:
        """Run the calling thread's kernels on this GPU from now on; a device without a number is this one."""
        self.module.cuda.Device(self.index).use()

    def limit_memory(self, size: int) -> None:
        """Limit the arrays on this GPU to ``size`` bytes in total."""
        cupy = self.module
        with cupy.cuda.Device(self.index):
            cupy.get_default_memory_pool().set_limit(size=size)

    def memory(self) -> PoolMemory:
        """How much of this GPU's memory its arrays use, and how much is left."""
        cupy = self.module
        with cupy.cuda.Device(self.index):
            pool = cupy.get_default_memory_pool()
            unused, total = cupy.cuda.runtime.memGetInfo()
            reserved, limit = pool.total_bytes(), pool.get_limit() or total
            return PoolMemory(pool.used_bytes(), reserved, limit, min(unused, max(0, limit - reserved)) + pool.free_bytes())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            name, colon, number = other.partition(":")
            return _NAMES.get(name) == self.name and (not colon or number == str(self.index))
        return isinstance(other, Device) and (self.name, self.index) == (other.name, other.index)

    def __hash__(self) -> int:
        return hash((self.name, self.index))

    def __str__(self) -> str:
        return self.name if self.name == "numpy" else f"{self.name}:{self.index}"

    def __repr__(self) -> str:
        return f"Device({str(self)!r})"


def device_of(x: Array) -> Device:
    """The device that holds ``x``."""
    return Device("numpy") if array_module(x) is np else Device(f"cupy:{x.device.id}")


def _gpu_in_use() -> int:
    """The number of the calling thread's GPU: 0 until it has chosen one."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return 0
    try:
        return int(cupy.cuda.runtime.getDevice())
    except cupy.cuda.runtime.CUDARuntimeError:  # there is no driver; the first array will say so
        return 0


def _import_cupy(index: int) -> ModuleType:
    """Import CuPy and ask the driver for GPU ``index``. Without a driver the import alone succeeds, and later calls fail."""
    if "cupy" not in sys.modules and importlib.util.find_spec("cupy") is None:
        raise DeviceUnavailableError(
            "device 'cupy' needs CuPy, which is not installed: "
            "pip install 'tensorlite[cuda12]' (or 'tensorlite[cuda13]') on a machine with an NVIDIA GPU and driver."
        )
    cupy = importlib.import_module("cupy")
    if int(cupy.__version__.partition(".")[0]) < OLDEST_CUPY:
        raise DeviceUnavailableError(
            f"device 'cupy' needs CuPy {OLDEST_CUPY} or newer, found {cupy.__version__}: "
            "pip install --upgrade 'tensorlite[cuda12]' (or 'tensorlite[cuda13]')."
        )
    runtime = cupy.cuda.runtime
    try:
        available = cupy.cuda.is_available()
    except runtime.CUDARuntimeError as error:
        if error.status != INSUFFICIENT_DRIVER:
            raise
        driver, needed = (f"{number // 1000}.{number % 1000 // 10}" for number in (runtime.driverGetVersion(), runtime.runtimeGetVersion()))
        raise DeviceUnavailableError(
            f"device 'cupy' needs a newer NVIDIA driver: this one supports CUDA up to {driver}, and CuPy was built for CUDA {needed}; "
            "update the driver, or install a CuPy for an older CUDA."
        ) from error
    if not available:
        raise DeviceUnavailableError(
            "device 'cupy' needs an NVIDIA GPU and its driver: CuPy is installed but sees none "
            "(check with nvidia-smi); use device 'numpy' on this machine."
        )
    count = runtime.getDeviceCount()
    if index >= count:
        raise DeviceUnavailableError(f"device 'cupy:{index}' does not exist: this machine has {count} GPU(s), 0 to {count - 1}.")
    return cupy
