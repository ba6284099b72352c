import torch

from tests.cases import Case, normal


def ours(**options):
    return lambda t, x: t.nn.functional.rotary_embedding(x, **options)


def twin(base=10000.0, start=0):  # as Llama in transformers has it, in float64
    def call(t, x):
        T, D = x.shape[-2:]
        angles = torch.outer(torch.arange(start, start + T).double(), base ** (-torch.arange(0, D, 2).double() / D))
        cos, sin = (torch.cat([f(angles)] * 2, dim=-1).to(x.dtype) for f in (torch.cos, torch.sin))
        return x * cos + torch.cat([-x[..., D // 2 :], x[..., : D // 2]], dim=-1) * sin

    return call


def case(name, *shape, **options):
    return Case(f"rotary_embedding-{name}", ours(**options), [normal(*shape)], torch_call=twin(**options))


CASES = [
    case("four-axes", 2, 3, 5, 8),
    case("two-axes", 5, 4),
    case("a-single-pair", 2, 7, 2),
    case("later", 1, 2, 3, 6, start=1000),
    case("other-base", 2, 70, 4, base=500_000.0),
    case("one-token", 2, 1, 4),
    case("no-tokens", 2, 0, 4),
    case("no-numbers", 3, 0),
]
