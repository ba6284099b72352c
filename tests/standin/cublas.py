"""cuBLAS on pointers: what the stand-in's products really compute, and how they were asked for.

Matrices are column by column, as in Fortran; a leading dimension is the distance of two columns in numbers. Each call is noted in
``machine.products``, so that a test can ask which flags and strides reached the library.

There are two ways in, as with the real one: the functions of this module are CuPy's wrappers, which refuse to work while a stream is
captured; `_Library` is what ctypes finds in libcublas.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.standin import machine as state

CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
CUBLAS_GEMM_DEFAULT, CUBLAS_GEMM_DEFAULT_TENSOR_OP = -1, 99
CUBLAS_POINTER_MODE_HOST, CUBLAS_POINTER_MODE_DEVICE = 0, 1
CUBLAS_DEFAULT_MATH, CUBLAS_TENSOR_OP_MATH = 0, 1
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_64F = 68, 69, 77, 70

EPILOGUE_BIAS, EPILOGUE_GELU_AUX_BIAS, EPILOGUE_DGELU = 4, 164, 192  # cublasLtEpilogue_t
TRANSA, TRANSB, EPILOGUE, BIAS_POINTER, AUX_POINTER, AUX_LD, BIAS_DATA_TYPE = 3, 4, 7, 8, 11, 12, 26  # cublasLtMatmulDescAttributes_t
ALIGNMENTS = {"A": 5, "B": 6, "C": 7, "D": 8}  # cublasLtMatmulPreferenceAttributes_t: bytes that an address is at least a multiple of
R_32F, R_64F, R_16F, R_16BF = 0, 1, 2, 14  # cudaDataType
_STORED = {R_32F: "float32", R_64F: "float64", R_16F: "float16"}
_HALVES = (R_16F, R_16BF)


def setStream(handle: int, stream: int) -> None:
    """There is one queue. CuPy refuses this while a stream is captured, and each of its wrappers does this first."""
    if state.machine.graph is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")


def setPointerMode(handle: int, mode: int) -> None:
    """Alpha and beta are on the host here."""
    if mode != CUBLAS_POINTER_MODE_HOST:
        raise NotImplementedError("the stand-in reads alpha and beta from the host only.")


def getPointerMode(handle: int) -> int:
    """On the host."""
    return CUBLAS_POINTER_MODE_HOST


def setMathMode(handle: int, mode: int) -> None:
    """The compute type of each call decides."""


def gemmEx(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, Atype: int, lda: int, B: int, Btype: int, ldb: int,
    beta: int, C: int, Ctype: int, ldc: int, computeType: int, algo: int,
) -> None:  # fmt: skip
    """C (m, n) = alpha op(A) op(B) + beta C."""
    setStream(handle, 0)
    _product("gemmEx", transa, transb, m, n, k, alpha, A, Atype, lda, 0, B, Btype, ldb, 0, beta, C, Ctype, ldc, 0, 1, computeType, algo)


def gemmStridedBatchedEx(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, Atype: int, lda: int, strideA: int, B: int,
    Btype: int, ldb: int, strideB: int, beta: int, C: int, Ctype: int, ldc: int, strideC: int, batchCount: int, computeType: int, algo: int,
) -> None:  # fmt: skip
    """The same ``batchCount`` times, from one matrix to the next by a stride."""
    setStream(handle, 0)
    _product(
        "gemmStridedBatchedEx", transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype, ldc,
        strideC, batchCount, computeType, algo,
    )  # fmt: skip


class _Function:
    """A function of a C library: it takes what ``argtypes`` says, and returns a status."""

    def __init__(self, run: Callable[..., int | None]) -> None:
        self.argtypes: tuple[Any, ...] = ()
        self.restype: Any = None
        self._run = run

    def __call__(self, *arguments: Any) -> int:
        name = getattr(self._run, "__name__", "?")
        assert self.restype is ctypes.c_int, f"{name} returns a cublasStatus_t, an int"
        assert len(arguments) == len(self.argtypes), f"{name} takes {len(self.argtypes)} arguments, got {len(arguments)}"
        plain = [kind(given).value for kind, given in zip(self.argtypes, arguments, strict=True)]
        for kind, given, value in zip(self.argtypes, arguments, plain, strict=True):
            assert given == (value or 0), f"{name}: {given!r} does not fit into {kind.__name__}"
        return self._run(*[value or 0 for value in plain]) or 0  # ctypes makes None of the null pointer


class _Library:
    """libcublas as ctypes opens it. A handle works on the stream it was given last, and needs a workspace before a capture."""

    def __init__(self) -> None:
        self._streams: dict[int, int] = {}
        self._workspaces: dict[int, tuple[int, int]] = {}
        for name in vars(type(self)):
            if name.startswith("cublas"):
                setattr(self, name, _Function(getattr(self, name)))

    def cublasCreate_v2(self, place: int) -> None:
        number = 1000 + len(self._streams)
        self._streams[number] = 0
        ctypes.c_void_p.from_address(place).value = number

    def cublasSetMathMode(self, handle: int, mode: int) -> None:
        assert handle in self._streams

    def cublasSetStream_v2(self, handle: int, stream: int) -> None:
        self._streams[handle] = stream
        self._workspaces.pop(handle, None)  # cuBLAS goes back to its own

    def cublasSetWorkspace_v2(self, handle: int, workspace: int, size: int) -> None:
        state.machine.check_range("the workspace of cuBLAS", workspace, size)
        self._workspaces[handle] = workspace, size

    def cublasGemmEx(self, handle: int, *arguments: Any) -> None:
        transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, compute, algo = arguments
        self._check(handle)
        _product("gemmEx", transa, transb, m, n, k, alpha, A, Atype, lda, 0, B, Btype, ldb, 0, beta, C, Ctype, ldc, 0, 1, compute, algo)

    def cublasGemmStridedBatchedEx(self, handle: int, *arguments: Any) -> None:
        self._check(handle)
        _product("gemmStridedBatchedEx", *arguments)

    def _check(self, handle: int) -> None:
        current = sys.modules["cupy"].cuda.get_current_stream().ptr
        assert self._streams[handle] == current, "cuBLAS would work on another stream than the current one"
        if handle not in self._workspaces:
            raise AssertionError("cuBLAS would allocate a workspace by itself, also while a graph is captured")
        state.machine.check_range("the workspace of cuBLAS", *self._workspaces[handle])


class _LtLibrary:
    """libcublasLt as ctypes opens it. Descriptions and layouts are numbers, whose contents are kept here.

    Attributes:
        knows: epilogues that it has algorithms for.
    """

    def __init__(self, knows: tuple[int, ...] = (EPILOGUE_BIAS, EPILOGUE_GELU_AUX_BIAS, EPILOGUE_DGELU)) -> None:
        self.knows = knows
        # of each algorithm that was asked for: the description, the preference, and where aux was
        self._algorithms: list[tuple[dict[Any, Any], dict[Any, Any], int]] = []
        self._made: dict[int, dict[Any, Any]] = {}
        for name in vars(type(self)):
            if name.startswith("cublasLt"):
                setattr(self, name, _Function(getattr(self, name)))

    def _make(self, place: int, contents: dict[Any, Any]) -> None:
        number = 2000 + len(self._made)
        self._made[number] = contents
        ctypes.c_void_p.from_address(place).value = number

    def _set(self, number: int, name: int, value: int, size: int) -> None:
        assert size in (4, 8), "an attribute is an int, a float, a size or a pointer"
        self._made[number][name] = (ctypes.c_int if size == 4 else ctypes.c_longlong).from_address(value).value

    def cublasLtCreate(self, place: int) -> None:
        self._make(place, {})

    def cublasLtMatmulDescCreate(self, place: int, compute: int, scale: int) -> None:
        assert scale == R_32F
        self._make(place, {"compute": compute})

    def cublasLtMatmulDescSetAttribute(self, description: int, name: int, value: int, size: int) -> None:
        self._set(description, name, value, size)

    def cublasLtMatrixLayoutCreate(self, place: int, kind: int, rows: int, columns: int, leading: int) -> None:
        assert leading >= rows
        self._make(place, {"kind": kind, "rows": rows, "columns": columns, "leading": leading})

    def cublasLtMatmulPreferenceCreate(self, place: int) -> None:
        self._make(place, {})

    def cublasLtMatmulPreferenceSetAttribute(self, preference: int, name: int, value: int, size: int) -> None:
        self._set(preference, name, value, size)

    def cublasLtMatmulAlgoGetHeuristic(
        self, handle: int, description: int, a: int, b: int, c: int, d: int, preference: int, wanted: int, results: int, found: int
    ) -> int:
        about, knows = self._made[description], self._made[description][EPILOGUE] in self.knows
        ctypes.c_int.from_address(found).value = int(knows)
        if about[EPILOGUE] & 128:
            assert about[AUX_LD] % 8 == 0 and about[AUX_LD] >= self._made[d]["rows"], "aux has rows of a multiple of eight numbers"
        self._algorithms.append((about, self._made[preference], about.get(AUX_POINTER, 0)))
        ctypes.c_uint64.from_address(results).value = 77 + len(self._algorithms)  # which cublasLtMatmul must be given again
        return 0 if knows else 15

    def cublasLtMatmul(self, handle: int, description: int, *arguments: Any) -> None:
        alpha, A, a, B, b, beta, C, _, D, d, algorithm, workspace, bytes_, stream = arguments
        about, a, b, d = self._made[description], self._made[a], self._made[b], self._made[d]
        asked, preference, aux_then = self._algorithms[ctypes.c_uint64.from_address(algorithm).value - 78]
        assert asked is about, "this algorithm was chosen for another product"
        for name, address in (("A", A), ("B", B), ("C", C), ("D", D)):
            promised = preference[ALIGNMENTS[name]]
            assert address % promised == 0, f"{name} at {address:#x} is not a multiple of {promised}, as the algorithm was promised"
        assert C == D and stream == sys.modules["cupy"].cuda.get_current_stream().ptr
        state.machine.check_range("the workspace of cuBLASLt", workspace, bytes_)
        transa, transb, epilogue = about.get(TRANSA, 0), about.get(TRANSB, 0), about[EPILOGUE]
        m, n, k = d["rows"], d["columns"], a["rows"] if transa else a["columns"]
        assert (k, n) == ((b["columns"], b["rows"]) if transb else (b["rows"], b["columns"])) and m == a["columns" if transa else "rows"]
        _product(
            "ltMatmul", transa, transb, m, n, k, alpha, A, a["kind"], a["leading"], 0, B, b["kind"], b["leading"], 0, beta, D, d["kind"],
            d["leading"], 0, 1, about["compute"], -1,
        )  # fmt: skip
        state.machine.products[-1]["epilogue"] = epilogue
        result = _matrices("D", D, d["kind"], (m, n), d["leading"], 0, 1)[0]
        vector, aux = None, None
        if epilogue & EPILOGUE_BIAS:
            assert about[BIAS_DATA_TYPE] == d["kind"]
            vector = _matrices("the bias", about[BIAS_POINTER], d["kind"], (m, 1), m, 0, 1)[0, :, 0]
        if epilogue & 128:
            place = about[AUX_POINTER]
            aligned = min(256, aux_then & -aux_then)
            assert place % aligned == 0, f"aux at {place:#x} is not a multiple of {aligned}, as it was when the algorithm was chosen"
            aux = _matrices("aux", place, d["kind"], (m, n), about[AUX_LD], 0, 1)[0]
        state.machine.add_to_last([aux] * (epilogue == EPILOGUE_DGELU), [aux] * (epilogue == EPILOGUE_GELU_AUX_BIAS))

        def run() -> None:
            x = result.astype(np.float32)  # the real one has not rounded it yet
            if vector is not None:
                x += vector[:, None].astype(np.float32)
            if epilogue == EPILOGUE_GELU_AUX_BIAS:
                aux[...] = x.astype(aux.dtype)
                x = _gelu(x)
            elif epilogue == EPILOGUE_DGELU:
                x *= _slope_of_gelu(aux.astype(np.float32))
            result[...] = x.astype(result.dtype)

        state.machine.write("ltMatmul's epilogue", run)


def _gelu(x: np.ndarray) -> np.ndarray:
    """By tanh, as cuBLASLt computes it."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _slope_of_gelu(x: np.ndarray) -> np.ndarray:
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)


def _product(
    name: str, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, Atype: int, lda: int, strideA: int, B: int,
    Btype: int, ldb: int, strideB: int, beta: int, C: int, Ctype: int, ldc: int, strideC: int, batch: int, compute: int, algo: int,
) -> None:  # fmt: skip
    given = locals() | {}
    for what in ("transa", "transb", "m", "n", "k", "A", "B", "C", "lda", "ldb", "ldc", "strideA", "strideB", "strideC", "batch"):
        assert isinstance(given[what], int), f"{name}: {what} must be an int, got {given[what]!r}"
    _check_types(name, Atype, Btype, Ctype, compute)
    for what, rows, leading in (("lda", k if transa else m, lda), ("ldb", n if transb else k, ldb), ("ldc", m, ldc)):
        assert leading >= max(1, rows), f"{name}: {what} {leading} is shorter than a column of {rows}"
    a = _matrices(f"A of {name}", A, Atype, (k, m) if transa else (m, k), lda, strideA, batch)
    b = _matrices(f"B of {name}", B, Btype, (n, k) if transb else (k, n), ldb, strideB, batch)
    c = _matrices(f"C of {name}", C, Ctype, (m, n), ldc, strideC, batch)
    assert batch == 1 or strideC >= ldc * (n - 1) + m, f"{name}: the results of a batch overlap"
    scale, kept = (_scalar(pointer, compute) for pointer in (alpha, beta))
    names = [
        "transa",
        "transb",
        "m",
        "n",
        "k",
        "Atype",
        "lda",
        "strideA",
        "Btype",
        "ldb",
        "strideB",
        "Ctype",
        "ldc",
        "strideC",
        "batch",
        "compute",
        "algo",
    ]
    state.machine.products.append({"name": name, "alpha": scale, "beta": kept, **{key: given[key] for key in names}})

    state.machine.note(name, [a, b, *[c] * bool(kept)], [c], 2 * m * n * k * batch)

    def run() -> None:
        left, right = (_operand(x, compute).swapaxes(1, 2) if t else _operand(x, compute) for x, t in ((a, transa), (b, transb)))
        result = scale * np.matmul(left, right)
        if kept:
            result += kept * c.astype(result.dtype)
        c[...] = result.astype(c.dtype)

    state.machine.write(name, run)


def _check_types(name: str, a: int, b: int, c: int, compute: int) -> None:
    """The combinations in cuBLAS's table that are used here."""
    fine = {
        CUBLAS_COMPUTE_64F: [(R_64F, R_64F)],
        CUBLAS_COMPUTE_32F_FAST_TF32: [(R_32F, R_32F)],
        CUBLAS_COMPUTE_32F: [(R_32F, R_32F), *((half, out) for half in _HALVES for out in (half, R_32F))],
        CUBLAS_COMPUTE_32F_PEDANTIC: [(R_32F, R_32F), *((half, out) for half in _HALVES for out in (half, R_32F))],
    }
    assert a == b and (a, c) in fine.get(compute, []), f"{name}: cuBLAS has no product of types {a}, {b} to {c} computed as {compute}"


def _scalar(pointer: int, compute: int) -> float:
    kind = ctypes.c_double if compute == CUBLAS_COMPUTE_64F else ctypes.c_float
    return kind.from_address(pointer).value


def _matrices(what: str, address: int, kind: int, shape: tuple[int, int], leading: int, stride: int, batch: int) -> np.ndarray:
    """(batch, rows, columns) as a view of the memory."""
    dtype = _dtype(kind)
    rows, columns = shape
    span = ((batch - 1) * stride + (columns - 1) * leading + rows) * dtype.itemsize
    if 0 in shape or not batch:
        return np.empty((batch, *shape), dtype)
    state.machine.check_range(what, address, span)
    memory = np.frombuffer((ctypes.c_char * span).from_address(address), np.uint8).view(f"V{dtype.itemsize}").view(dtype)
    steps = tuple(step * dtype.itemsize for step in (stride, 1, leading))
    return np.lib.stride_tricks.as_strided(memory, (batch, *shape), steps)


def _dtype(kind: int) -> Any:
    if kind == R_16BF:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(_STORED[kind])


def _operand(x: np.ndarray, compute: int) -> np.ndarray:
    """As the tensor cores see it."""
    x = x.astype(np.float64 if compute == CUBLAS_COMPUTE_64F else np.float32)
    if compute == CUBLAS_COMPUTE_32F_FAST_TF32:  # 10 of 23 bits of the fraction, to the nearest
        bits = x.view(np.uint32)
        x = ((bits + 0xFFF + (bits >> 13 & 1)) & ~np.uint32(0x1FFF)).view(np.float32)
    return x
