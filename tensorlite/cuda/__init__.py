"""``tensorlite.cuda``: queries about the GPU, under torch's names.

    device = tl.device("cuda" if tl.cuda.is_available() else "cpu")

Random numbers are drawn on the CPU for both devices (`tensorlite.random`), so `manual_seed` and `manual_seed_all` have nothing to seed.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

from tensorlite.backend import Device, DeviceUnavailableError
from tensorlite.lazy import on_demand

_find = on_demand("tensorlite.cuda", {"tensorlite.cuda": "amp"})


def is_available() -> bool:
    """Whether CuPy is installed and finds a GPU and its driver."""
    try:
        return Device("cuda").module is not None
    except DeviceUnavailableError:
        return False


def device_count() -> int:
    """How many GPUs there are; 0 if `is_available` is False."""
    return Device("cuda").module.cuda.runtime.getDeviceCount() if is_available() else 0


def current_device() -> int:
    """The number of the GPU on which the calling thread's kernels run."""
    return Device("cuda").module.cuda.runtime.getDevice()


def set_device(device: Device | str | int) -> None:
    """Run the calling thread's kernels on that GPU from now on."""
    Device(device).use()


def get_device_properties(device: Device | str | int = "cuda") -> SimpleNamespace:
    """``name``, ``major`` and ``minor`` of the compute capability, ``total_memory`` in bytes, ``multi_processor_count``."""
    asked = Device(device)
    found = asked.module.cuda.runtime.getDeviceProperties(asked.index)
    major, minor = asked.compute_capability
    return SimpleNamespace(
        name=found["name"].decode() if isinstance(found["name"], bytes) else found["name"],
        major=major,
        minor=minor,
        total_memory=found["totalGlobalMem"],
        multi_processor_count=found["multiProcessorCount"],
    )


def get_device_name(device: Device | str | int = "cuda") -> str:
    """The product name of the GPU.

    Raises:
        DeviceUnavailableError: without a GPU. All functions here raise it, except those about availability and memory.
    """
    return get_device_properties(device).name


def get_device_capability(device: Device | str | int = "cuda") -> tuple[int, int]:
    """The compute capability, major and minor: (9, 0) is Hopper."""
    return Device(device).compute_capability


def memory_allocated(device: Device | str | int = "cuda") -> int:
    """Bytes of arrays that are alive on the GPU; 0 without one."""
    return Device(device).memory().used if is_available() else 0


def memory_reserved(device: Device | str | int = "cuda") -> int:
    """Bytes that the pool holds for arrays; 0 without a GPU."""
    return Device(device).memory().reserved if is_available() else 0


def max_memory_allocated(device: Device | str | int = "cuda") -> int:
    """The most bytes that the pool has held since `empty_cache`, a little more than all arrays together; 0 without a GPU."""
    return memory_reserved(device)


def empty_cache() -> None:
    """Return the memory that no array uses to the driver."""
    if is_available():
        Device("cuda").module.get_default_memory_pool().free_all_blocks()


def synchronize(device: Device | str | int = "cuda") -> None:
    """Wait until everything queued on the GPU has run."""
    asked = Device(device)
    cupy = asked.module
    with cupy.cuda.Device(asked.index):
        cupy.cuda.runtime.deviceSynchronize()


def manual_seed(seed: int) -> None:
    """Nothing: `tensorlite.manual_seed` seeds the numbers of both devices."""


def manual_seed_all(seed: int) -> None:
    """Nothing: `tensorlite.manual_seed` seeds the numbers of both devices."""


def is_bf16_supported() -> bool:
    """Whether the GPU's tensor cores take bfloat16: from compute capability 8 on."""
    return is_available() and get_device_capability() >= (8, 0)


class _NeverRaisedError(RuntimeError):
    """Replaces CuPy's out-of-memory error where no GPU is in use."""


def __getattr__(name: str) -> Any:
    if name == "OutOfMemoryError":  # CuPy's own, if CuPy has been imported; before that it cannot be raised
        cupy = sys.modules.get("cupy")
        return _NeverRaisedError if cupy is None else cupy.cuda.memory.OutOfMemoryError
    return _find(name)
