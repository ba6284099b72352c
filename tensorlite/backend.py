"""Where arrays live: NumPy on the CPU, CuPy on an NVIDIA GPU.

Nothing in the engine asks "which one?" and branches. An op takes the module its argument came from,

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

OLDEST_CUPY = 14  # the first with graphs and types as they are used here
INSUFFICIENT_DRIVER = 35  # cudaErrorInsufficientDriver

Array = Any  # numpy.ndarray or cupy.ndarray: they share their methods, not a base class


class DeviceUnavailableError(RuntimeError):
    """The device asked for cannot be used on this machine; the message says what is missing."""


def array_module(x: Array) -> Any:
    """The module, ``numpy`` or ``cupy``, whose functions take ``x``. Plain numbers count as NumPy."""
    if isinstance(x, np.ndarray):
        return np
    cupy = sys.modules.get("cupy")  # an array of a module that was never imported cannot exist
    if cupy is not None and isinstance(x, cupy.ndarray):
        return cupy
    return np


def to_numpy(x: Array) -> np.ndarray:
    """Bring ``x`` to the host. On a GPU this waits until everything queued before it has run."""
    return np.asarray(x) if array_module(x) is np else x.get()


class PoolMemory(NamedTuple):
    """Bytes of a GPU's memory. CuPy keeps what arrays have let go of in a pool, for the next arrays.

    Attributes:
        used: by arrays that are alive.
        reserved: by the pool; it does not shrink by itself, so this is also the most that was ever used.
        limit: of the pool.
        free: what further arrays could get.
    """

    used: int
    reserved: int
    limit: int
    free: int


class Device:
    """A place for arrays: ``Device("numpy")``, ``Device("cupy")`` or ``Device("cupy:1")``.

    Making one costs nothing and touches no driver; the first array created on it does.

    Raises:
        ValueError: for any other name.
    """

    __slots__ = ("index", "name")
    name: str
    index: int

    def __init__(self, spec: str | Device = "numpy") -> None:
        if isinstance(spec, Device):
            self.name, self.index = spec.name, spec.index
            return
        name, _, index = str(spec).partition(":")
        if name not in ("numpy", "cupy") or (index and not (name == "cupy" and index.isdecimal())):
            hint = {"cpu": " Use 'numpy'.", "cuda": " Use 'cupy'."}.get(name, "")
            raise ValueError(f"unknown device {spec!r}: it is 'numpy' (the CPU), 'cupy' or 'cupy:<index>'.{hint}")
        self.name, self.index = name, int(index or 0)

    @property
    def module(self) -> Any:
        """``numpy``, or ``cupy`` after it was seen to work here.

        Raises:
            DeviceUnavailableError: when CuPy is not installed, or finds no GPU or driver.
        """
        return np if self.name == "numpy" else _import_cupy(self.index)

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """``x`` as an array of ``dtype`` on this device; copied only where that is needed."""
        if self.name == "numpy":
            return np.asarray(x if array_module(x) is np else to_numpy(x), dtype=dtype)
        cupy = self.module
        with cupy.cuda.Device(self.index):
            return cupy.asarray(x, dtype=dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """Zeros that are made on this device, and not brought there."""
        if self.name == "numpy":
            return np.zeros(shape, dtype)
        cupy = self.module
        with cupy.cuda.Device(self.index):
            return cupy.zeros(shape, dtype)

    # --- what only a GPU has ---

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Which generation of GPUs this one is of, and which version: (9, 0) is Hopper."""
        digits = str(self.module.cuda.Device(self.index).compute_capability)
        return int(digits[:-1]), int(digits[-1])

    def use(self) -> None:
        """From now on the calling thread's kernels run on this GPU."""
        self.module.cuda.Device(self.index).use()

    def limit_memory(self, size: int) -> None:
        """Let the arrays on this GPU take ``size`` bytes together, and no more."""
        cupy = self.module
        with cupy.cuda.Device(self.index):
            cupy.get_default_memory_pool().set_limit(size=size)

    def memory(self) -> PoolMemory:
        """What the arrays on this GPU have taken of its memory, and what is left."""
        cupy = self.module
        with cupy.cuda.Device(self.index):
            pool = cupy.get_default_memory_pool()
            unused, total = cupy.cuda.runtime.memGetInfo()
            reserved, limit = pool.total_bytes(), pool.get_limit() or total
            return PoolMemory(pool.used_bytes(), reserved, limit, min(unused, max(0, limit - reserved)) + pool.free_bytes())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return str(self) == other or self.name == other
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


def _import_cupy(index: int) -> ModuleType:
    """Import CuPy and ask the driver for GPU ``index``: CuPy imports without one and fails only later."""
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
            f"device 'cupy' needs a newer NVIDIA driver: this one knows CUDA up to {driver}, and CuPy was built for CUDA {needed}; "
            "update the driver, or install the CuPy of an older CUDA."
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
