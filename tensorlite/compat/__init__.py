"""Names that only programs written for torch need. A reader of backpropagation can skip this package.

`tensorlite` has the names in `FUNCTIONS`, and `Tensor` those in `METHODS`. Each is imported from its page at the first use
(`tensorlite.lazy`). Functions with their own gradient are pages of the book; the rest are thin functions in this package.
`tensorlite.missing` lists what is missing, and what to write instead.
"""

from __future__ import annotations

import sys
from typing import Any

from tensorlite.compat import spelling
from tensorlite.lazy import Later, MissingModules, on_demand
from tensorlite.ops import methods  # noqa: F401 - first come the book's own methods, then what is put in front of some
from tensorlite.tensor import Tensor

BOTH = {  # functions that are also methods
    "tensorlite.ops.rounding": "sign floor ceil round trunc remainder",
    "tensorlite.ops.logarithm": "log1p expm1 log2 log10",
    "tensorlite.ops.error_function": "erf",
    "tensorlite.ops.sorting": "sort topk argsort",
    "tensorlite.ops.scatter": "scatter scatter_add index_add",
    "tensorlite.ops.cumprod": "cumprod",
    "tensorlite.ops.norm": "norm",
    "tensorlite.ops.diagonal": "diagonal diag_embed diag trace",
}

FUNCTIONS = {
    "tensorlite": "amp backends cuda distributed parallel utils",
    "tensorlite.amp": "autocast",
    **BOTH,
    "tensorlite.compat.creation": """
        linspace logspace eye empty empty_like full_like rand_like randn_like randperm bernoulli multinomial normal as_tensor asarray
        FloatTensor DoubleTensor HalfTensor LongTensor IntTensor ShortTensor CharTensor ByteTensor BoolTensor
    """,
    "tensorlite.compat.composed": """
        t outer dot mv addmm repeat_interleave masked_select swapaxes swapdims movedim vstack hstack lerp addcmul addcdiv
        cosine_similarity concat concatenate clip absolute multiply subtract divide true_divide negative floor_divide
    """,
    "tensorlite.compat.questions": """
        allclose isclose equal unique bincount nonzero count_nonzero is_tensor is_floating_point numel
        logical_xor bitwise_not bitwise_and bitwise_or bitwise_xor
    """,
    "tensorlite.compat.modes": "inference_mode set_grad_enabled Generator get_rng_state set_rng_state",
    "tensorlite.compat.constants": "inf pi nan e float double half int short bool int8 int16 device dtype Size finfo iinfo",
    "tensorlite.compat.saving": "save load",
}

METHODS = {
    **BOTH,
    "tensorlite.ops.rectifier": "logsigmoid",
    "tensorlite.compat.creation": "bernoulli multinomial",
    "tensorlite.compat.composed": """
        t outer dot mv addmm repeat_interleave masked_select swapaxes swapdims movedim lerp addcmul addcdiv
        expand_as view_as reshape_as type_as clip absolute multiply subtract divide true_divide negative floor_divide
    """,
    "tensorlite.compat.questions": """
        allclose isclose equal unique bincount nonzero count_nonzero logical_xor bitwise_not bitwise_and bitwise_or bitwise_xor
        __invert__=bitwise_not __and__=and_operator __or__=or_operator __xor__=xor_operator
        __rand__=and_operator __ror__=or_operator __rxor__=xor_operator
    """,
    "tensorlite.compat.methods": """
        cpu cuda type grad_fn nelement ndimension element_size nbytes itemsize stride data_ptr is_contiguous is_cuda is_complex pin_memory
        short byte char bfloat16 new_tensor new_zeros new_ones new_full new_empty detach_
        __format__=formatted __mod__=mod_operator __rmod__=reflected_mod_operator __contains__=contains __array_wrap__=array_wrap
    """,
    "tensorlite.compat.in_place": """
        normal_ uniform_ bernoulli_ exponential_ random_ remainder_ clip_ abs_ neg_ exp_ log_ sqrt_ rsqrt_ reciprocal_ square_ floor_ ceil_
        round_ trunc_ relu_ sigmoid_ tanh_ tril_ triu_ lerp_ addcmul_ addcdiv_ scatter_ scatter_add_ index_add_
        __imod__=mod_operator __iand__=and_operator __ior__=or_operator __ixor__=xor_operator
    """,
}


# Methods of torch's tensors that are not here. A ``__getattr__`` would catch all names, and make every attribute of a tensor slower.
MISSING_METHODS = """
    svd qr lu det logdet slogdet inverse cholesky cholesky_solve lstsq pinverse matrix_power matrix_exp kron cross
    real imag conj angle stft istft unfold to_sparse hardshrink prelu
"""


class Missing:
    """A method that is not here: access to it raises an AttributeError with the sentence of `tensorlite.missing`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        from tensorlite.missing import sentence

        raise AttributeError(sentence(f"Tensor.{self.name}"))


for _page, _names in METHODS.items():
    for _name in _names.split():
        _method, _, _function = _name.partition("=")  # for an operator: the function on the page has another name
        setattr(Tensor, _method, Later(_method, _page, _function or _method, spelling.with_torch_keywords))
for _name, _respelled in spelling.METHODS.items():
    setattr(Tensor, _name, _respelled)

for _name in MISSING_METHODS.split():
    setattr(Tensor, _name, Missing(_name))


def names_of_a_tensor(self: Tensor) -> list[str]:
    """The names that ``dir(x)`` lists and a shell completes, without the methods that only raise."""
    return sorted(set(object.__dir__(self)) - set(MISSING_METHODS.split()))


Tensor.__dir__ = names_of_a_tensor  # type: ignore[method-assign, assignment]

_find = on_demand("tensorlite", FUNCTIONS, spelling.with_torch_keywords)
sys.meta_path.append(MissingModules())


def find(name: str) -> Any:
    """``tensorlite.<name>``.

    Raises:
        AttributeError: for a name that no page has, with a sentence about it.
    """
    return _find(name)


def names() -> list[str]:
    """All names in `FUNCTIONS`."""
    return [name for listed in FUNCTIONS.values() for name in listed.split()]
