from tests.cases import Case, normal


def repeat(times):
    def call(t, x):
        from tensorlite.ops.grouped_queries import repeat_heads

        return repeat_heads(x, times)

    return call


def grouped(t, q, k, v):
    return t.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def case(times, *shape):
    name = f"repeat_heads-{times}-times-{len(shape)}-axes"
    return Case(name, repeat(times), [normal(*shape)], torch_call=lambda t, x: x.repeat_interleave(times, dim=-3))


CASES = [
    case(3, 2, 2, 4, 5),
    case(1, 2, 3, 4, 5),
    case(4, 1, 3, 2),
    case(5, 2, 2, 3, 2),
    Case("repeat_heads-none", repeat(2), [normal(0, 3, 2)], torch_call=lambda t, x: x.repeat_interleave(2, dim=-3)),
    Case("attention-of-groups", grouped, [normal(2, 6, 5, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 4)]),
    Case("attention-of-nine-queries", grouped, [normal(1, 9, 5, 4), normal(1, 1, 5, 4), normal(1, 1, 5, 4)]),
    Case("attention-of-one-group", grouped, [normal(2, 3, 5, 4), normal(2, 1, 5, 4), normal(2, 1, 5, 4)]),
]
