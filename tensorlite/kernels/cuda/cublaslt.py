"""cuBLASLt, called by ctypes: matrix products with one more operation on the result before it leaves the registers.

This operation is called the *epilogue* of the product. Three are used here:

    BIAS                D = A · B + bias, the same number for a whole row of D
    GELU_AUX_BIAS       D = gelu(aux), aux = A · B + bias, with gelu by tanh; both are written
    DGELU               D = A · B ∘ gelu'(aux)

The epilogue for a bias's gradient was measured and gains nothing (docs/gpu.md).

cuBLASLt is part of cuBLAS. It has no stream and no workspace: both are arguments. cuBLASLt is asked once how to compute a product of a
given shape, and the answer (a *plan*) is kept, so a captured step computes in the same way as a plain one.

Source: the cuBLAS documentation, chapter 3 (Using the cuBLASLt API).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, NamedTuple

from tensorlite.kernels.cuda.cublas import DATA_TYPES, check, get_handle, load

BIAS, GELU_AUX_BIAS, DGELU = 4, 164, 192  # cublasLtEpilogue_t
READS_OR_WRITES_AUX = 128  # the bit that the last two share
NOT_SUPPORTED = 15  # cublasStatus_t: there is no algorithm for this
LARGEST_ALIGNMENT = 256  # bytes: more makes no difference

# cublasLtMatmulDescAttributes_t, cublasLtMatmulPreferenceAttributes_t
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS_POINTER, AUX_POINTER, AUX_LEADING, BIAS_TYPE = 3, 4, 7, 8, 11, 12, 26
WORKSPACE_BYTES, ALIGNMENT_OF_A, ALIGNMENT_OF_B, ALIGNMENT_OF_C, ALIGNMENT_OF_D = 1, 5, 6, 7, 8

_pointer, _int, _long, _size = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong, ctypes.c_size_t
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (_pointer,),
    "cublasLtMatmulDescCreate": (_pointer, _int, _int),
    "cublasLtMatmulDescSetAttribute": (_pointer, _int, _pointer, _size),
    "cublasLtMatrixLayoutCreate": (_pointer, _int, _long, _long, _long),
    "cublasLtMatmulPreferenceCreate": (_pointer,),
    "cublasLtMatmulPreferenceSetAttribute": (_pointer, _int, _pointer, _size),
    # handle, description, layouts of A, B, C, D, preference, how many are asked for, results, how many there are
    "cublasLtMatmulAlgoGetHeuristic": (_pointer, _pointer, _pointer, _pointer, _pointer, _pointer, _pointer, _int, _pointer, _pointer),
    # handle, description, alpha, A, its layout, B, its layout, beta, C, its layout, D, its layout, algorithm, workspace, bytes, stream
    "cublasLtMatmul": (*([_pointer] * 14), _size, _pointer),
}


class Algorithm(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


class Shape(NamedTuple):
    """Everything that a plan depends on. A is (m, k), B is (k, n) and D is (m, n), column-major; a transposed one is row-major."""

    m: int
    n: int
    k: int
    a_transposed: bool
    b_transposed: bool
    lda: int
    ldb: int
    ldd: int
    dtype: str
    out_dtype: str
    compute: int
    epilogue: int
    alignments: tuple[int, int, int, int]  # of A, B, D and aux


@dataclass(frozen=True)
class Plan:
    """How to compute products of one shape: descriptors of cuBLASLt, and the algorithm that it has chosen."""

    description: int
    a: int
    b: int
    d: int
    algorithm: Algorithm


class CublasLt:
    """cuBLASLt for one device and one thread; the workspace is that of the thread's `cublas.Handle`."""

    def __init__(self, cupy: Any, workspace: Any) -> None:
        self._cupy, self._workspace = cupy, workspace
        self._library = load(cupy, "cublasLt")
        for name, types in SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = types, _int
        self._handle = self._create("cublasLtCreate")
        self._plans: dict[Shape, Plan | None] = {}

    def multiply(self, shape: Shape, a: int, b: int, d: int, bias: int, aux: int) -> bool:
        """D = A · B with the epilogue; all are addresses on the device, 0 where the epilogue has no use for it. aux is laid out as D.

        Returns:
            False if cuBLASLt has no algorithm for this shape; then D and aux are unchanged.
        """
        if shape not in self._plans:
            self._plans[shape] = self._plan(shape, aux)
        plan = self._plans[shape]
        if plan is None:
            return False
        self._set_attribute(plan.description, BIAS_POINTER, ctypes.c_void_p(bias))
        if aux:
            self._set_attribute(plan.description, AUX_POINTER, ctypes.c_void_p(aux))
        self._call(
            "cublasLtMatmul", self._handle, plan.description, ctypes.addressof(_ONE), a, plan.a, b, plan.b, ctypes.addressof(_ZERO),
            d, plan.d, d, plan.d, ctypes.addressof(plan.algorithm), self._workspace.data.ptr, self._workspace.size,
            self._cupy.cuda.get_current_stream().ptr,
        )  # fmt: skip
        return True

    def _plan(self, shape: Shape, aux: int) -> Plan | None:
        """Ask cuBLASLt for an algorithm; None if it has none."""
        description = self._create("cublasLtMatmulDescCreate", shape.compute, DATA_TYPES["float32"])  # alpha and beta are float32
        self._set_attribute(description, TRANSPOSE_A, ctypes.c_int(shape.a_transposed))
        self._set_attribute(description, TRANSPOSE_B, ctypes.c_int(shape.b_transposed))
        self._set_attribute(description, EPILOGUE, ctypes.c_int(shape.epilogue))
        self._set_attribute(description, BIAS_TYPE, ctypes.c_int(DATA_TYPES[shape.out_dtype]))
        if shape.epilogue & READS_OR_WRITES_AUX:  # the address too, because its alignment decides
            self._set_attribute(description, AUX_LEADING, ctypes.c_int64(shape.ldd))
            self._set_attribute(description, AUX_POINTER, ctypes.c_void_p(aux))
        kind = DATA_TYPES[shape.dtype]
        a = self._layout(kind, shape.m, shape.k, shape.lda, shape.a_transposed)
        b = self._layout(kind, shape.k, shape.n, shape.ldb, shape.b_transposed)
        d = self._layout(DATA_TYPES[shape.out_dtype], shape.m, shape.n, shape.ldd)
        preference = self._create("cublasLtMatmulPreferenceCreate")
        alignments = zip((ALIGNMENT_OF_A, ALIGNMENT_OF_B, ALIGNMENT_OF_D), shape.alignments[:3], strict=True)
        preferences: list[tuple[int, Any]] = [(name, ctypes.c_uint32(bytes_)) for name, bytes_ in alignments]
        preferences += [(ALIGNMENT_OF_C, preferences[-1][1]), (WORKSPACE_BYTES, ctypes.c_size_t(self._workspace.size))]  # C is D
        for name, value in preferences:
            self._call("cublasLtMatmulPreferenceSetAttribute", preference, name, ctypes.addressof(value), ctypes.sizeof(value))
        algorithm, found = Algorithm(), ctypes.c_int()
        arguments = self._handle, description, a, b, d, d, preference, 1, ctypes.addressof(algorithm), ctypes.addressof(found)
        status = self._library.cublasLtMatmulAlgoGetHeuristic(*arguments)
        if status == NOT_SUPPORTED or (status == 0 and found.value == 0):
            return None
        check("cublasLtMatmulAlgoGetHeuristic", status)
        return Plan(description, a, b, d, algorithm)

    def _layout(self, kind: int, rows: int, columns: int, leading: int, transposed: bool = False) -> int:
        rows, columns = (columns, rows) if transposed else (rows, columns)
        return self._create("cublasLtMatrixLayoutCreate", kind, rows, columns, leading)

    def _set_attribute(self, description: int, name: int, value: Any) -> None:
        self._call("cublasLtMatmulDescSetAttribute", description, name, ctypes.addressof(value), ctypes.sizeof(value))

    def _create(self, name: str, *arguments: Any) -> int:
        place = ctypes.c_void_p()
        self._call(name, ctypes.addressof(place), *arguments)
        assert place.value
        return place.value

    def _call(self, name: str, *arguments: Any) -> None:
        check(name, getattr(self._library, name)(*arguments))


_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)


def get_cublaslt(cupy: Any) -> CublasLt:
    """The calling thread's object for the current device; created at the first call."""
    own = get_handle(cupy)
    if own.cublaslt is None:
        own.cublaslt = CublasLt(cupy, own.workspace)
    return own.cublaslt


def alignment(address: int) -> int:
    """The largest power of two that divides ``address``, up to 256."""
    return min(address & -address, LARGEST_ALIGNMENT)
