"""Newton–Schulz on the GPU: products by cuBLAS in the precision in use, which a CUDA graph can record; CuPy's own it cannot."""

from __future__ import annotations

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.kernels.cuda.gemm import gemm
from tensorlite.optim.muon import COEFFICIENTS, newton_schulz


def orthogonalise(g: Array, coefficients: tuple[float, float, float] = COEFFICIENTS, steps: int = 5, eps: float = 1e-7) -> Array:
    """`newton_schulz`."""
    xp = array_module(g)
    a, b, c = coefficients
    x = xp.ascontiguousarray(g if g.shape[0] <= g.shape[1] else g.T)
    x = x / xp.maximum(xp.sqrt((x * x).sum()), eps)
    for _ in range(steps):
        s = gemm(x, x.T)
        s = b * s + c * gemm(s, s)
        new = gemm(s, x)
        x *= a
        x += new
    return x if g.shape[0] <= g.shape[1] else x.T


def supports(g: Array, coefficients: tuple[float, float, float] = COEFFICIENTS, steps: int = 5, eps: float = 1e-7) -> bool:
    """A matrix of float32."""
    return on_gpu(g, types=("float32",)) and g.ndim == 2


newton_schulz.register(orthogonalise, supports)
