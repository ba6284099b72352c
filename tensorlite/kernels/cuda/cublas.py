"""cuBLAS, called by ctypes, with our own handle and workspace.

CuPy has wrappers for these functions, but in version 14 each of them raises while a stream is captured. A training step that uses
them cannot become a CUDA graph. The library is the one that CuPy has loaded; only the calls are ours.

- **Our own handle.** CuPy changes the stream and the workspace of its handle. No other code uses ours.
- **Our own workspace.** Without one, cuBLAS allocates memory while a graph is captured. It also chooses an algorithm by the size of the
  workspace: with the same workspace, a captured step gives the same bits as a plain step.

Source: the cuBLAS documentation, sections 2.1.4 (workspace), 2.3.24 (math modes) and 2.8.12 (cublasGemmEx).
"""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import Any

NORMAL, TRANSPOSED = 0, 1  # cublasOperation_t
DATA_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType
COMPUTE_FLOAT32, COMPUTE_TF32 = 68, 77  # cublasComputeType_t
DEFAULT_ALGORITHM = -1
SUMS_IN_FLOAT32 = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: no partial sum is rounded to a half precision
WORKSPACE, WORKSPACE_OF_HOPPER = 4 << 20, 32 << 20  # bytes, as NVIDIA recommends

_pointer, _int, _long = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasCreate_v2": (_pointer,),
    "cublasSetMathMode": (_pointer, _int),
    "cublasSetStream_v2": (_pointer, _pointer),
    "cublasSetWorkspace_v2": (_pointer, _pointer, ctypes.c_size_t),
    # handle, transa, transb, m, n, k, alpha, A, type, lda, B, type, ldb, beta, C, type, ldc, compute type, algorithm
    "cublasGemmEx": (
        *(_pointer, _int, _int, _int, _int, _int, _pointer, _pointer, _int, _int, _pointer, _int, _int),
        *(_pointer, _pointer, _int, _int, _int, _int),
    ),
    # the same with a stride after each leading dimension, and the number of matrices before the compute type
    "cublasGemmStridedBatchedEx": (
        *(_pointer, _int, _int, _int, _int, _int, _pointer, _pointer, _int, _int, _long, _pointer, _int, _int, _long),
        *(_pointer, _pointer, _int, _int, _long, _int, _int, _int),
    ),
}


class CublasError(RuntimeError):
    """cuBLAS returned an error; the message has its cublasStatus_t."""


class Handle:
    """cuBLAS for one device and one thread. A call uses the stream that is current.

    Attributes:
        workspace: memory on the device for its products, and for those of `cublaslt`.
        cublaslt: cuBLASLt beside it; `cublaslt.get_cublaslt` makes it.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy, self._library = cupy, load(cupy, "cublas")
        for name, types in SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = types, _int
        place = ctypes.c_void_p()
        check("cublasCreate_v2", self._library.cublasCreate_v2(ctypes.addressof(place)))
        self._handle = place.value
        self._call("cublasSetMathMode", SUMS_IN_FLOAT32)
        with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc):  # not in a graph's memory pool, nor in the limited one for arrays
            size = WORKSPACE_OF_HOPPER if int(cupy.cuda.Device().compute_capability) >= 90 else WORKSPACE
            self.workspace = cupy.empty(size, "uint8")
        self.cublaslt: Any = None
        self._stream: int | None = None

    def gemm(self, *arguments: Any) -> None:
        """``cublasGemmEx`` with all its arguments but the handle.

        Raises:
            CublasError: if cuBLAS refuses.
        """
        self._use_current_stream()
        self._call("cublasGemmEx", *arguments)

    def gemm_strided_batched(self, *arguments: Any) -> None:
        """``cublasGemmStridedBatchedEx`` with all its arguments but the handle.

        Raises:
            CublasError: if cuBLAS refuses.
        """
        self._use_current_stream()
        self._call("cublasGemmStridedBatchedEx", *arguments)

    def _use_current_stream(self) -> None:
        stream = self._cupy.cuda.get_current_stream().ptr
        if stream != self._stream:
            self._call("cublasSetStream_v2", stream)  # this also resets the workspace
            self._call("cublasSetWorkspace_v2", self.workspace.data.ptr, self.workspace.size)
            self._stream = stream

    def _call(self, name: str, *arguments: Any) -> None:
        check(name, getattr(self._library, name)(self._handle, *arguments))


def load(cupy: Any, library: str) -> Any:
    """The library ``cublas`` or ``cublasLt`` that CuPy has loaded, or loads now.

    Raises:
        RuntimeError: if the library of CuPy's version is not there.
    """
    cupy.cuda.get_cublas_handle()  # loads both
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    name = f"{library}64_{major}.dll" if sys.platform == "win32" else f"lib{library}.so.{major}"
    try:
        return ctypes.CDLL(name)  # the linker finds a loaded library by its name
    except OSError as error:
        raise RuntimeError(f"{name} cannot be loaded ({error}): pip install 'tensorlite[cuda{major}]', which brings it.") from error


_of_thread = threading.local()


def get_handle(cupy: Any) -> Handle:
    """The calling thread's handle for the current device; created at the first call."""
    handles: dict[int, Handle] = _of_thread.__dict__.setdefault("handles", {})
    device = cupy.cuda.runtime.getDevice()
    if device not in handles:
        handles[device] = Handle(cupy)
    return handles[device]


def clear_cache() -> None:
    """Drop the calling thread's handles: for tests, which replace CuPy by another module."""
    _of_thread.__dict__.clear()


def check(name: str, status: int) -> None:
    """Raise CublasError unless ``status`` is success."""
    if status:
        raise CublasError(f"{name} failed with status {status} of cublasStatus_t.")
