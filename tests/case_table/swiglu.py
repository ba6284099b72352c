import numpy as np

from tests.cases import Case, fixed, normal


def swiglu(t, x):
    return t.nn.functional.swiglu(x)


def twin(t, x):
    gate, up = x.chunk(2, dim=-1)
    return t.nn.functional.silu(gate) * up


FAR = fixed(np.array([[-300.0, -40.0, -9.0, 9.0, 40.0, 300.0, 1.0, -2.0, 300.0, -300.0, 2.0, 1.0]]))

CASES = [
    Case("swiglu", swiglu, [normal(3, 10, std=2)], torch_call=twin),
    Case("swiglu-one-axis", swiglu, [normal(6)], torch_call=twin),
    Case("swiglu-three-axes", swiglu, [normal(2, 3, 16)], torch_call=twin),
    Case("swiglu-far", swiglu, [FAR], torch_call=twin),
    Case("swiglu-empty", swiglu, [normal(2, 0)], torch_call=twin),
    Case("swiglu-no-rows", swiglu, [normal(0, 4)], torch_call=twin),
]
