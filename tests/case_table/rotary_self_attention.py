from tests.case_table.rotary import twin as rotate
from tests.cases import Case, normal


def ours(n_head, n_kv_head, **options):
    return lambda t, qkv: t.nn.functional.rotary_self_attention(qkv, n_head, n_kv_head, **options)


def twin(n_head, n_kv_head, base=10000.0):  # as a Llama in torch has it
    def call(t, qkv):
        B, T, _ = qkv.shape
        heads = qkv.view(B, T, n_head + 2 * n_kv_head, -1).transpose(1, 2)
        q, k, v = heads.split([n_head, n_kv_head, n_kv_head], dim=1)
        q, k = rotate(base)(t, q), rotate(base)(t, k)
        y = t.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y.transpose(1, 2).flatten(2)

    return call


def case(name, n_head, n_kv_head, B, T, D, **options):
    qkv = normal(B, T, (n_head + 2 * n_kv_head) * D)
    name = f"rotary_self_attention-{name}"
    return Case(name, ours(n_head, n_kv_head, **options), [qkv], torch_call=twin(n_head, n_kv_head, **options))


def recomputed(t, qkv):
    return t.nn.functional.rotary_self_attention(qkv, 4, 2, recompute=True)


CASES = [
    case("groups-of-two", 4, 2, 2, 5, 6),
    case("groups-of-one", 2, 2, 2, 5, 4),
    case("one-group", 3, 1, 2, 5, 4),
    case("one-head", 1, 1, 1, 5, 2),
    case("other-base", 2, 1, 1, 9, 4, base=500.0),
    case("one-token", 4, 2, 2, 1, 4),
    case("heads-of-eight", 4, 2, 1, 9, 8),
    case("more-than-a-block", 2, 1, 2, 70, 4),
    Case("rotary_self_attention-recompute", recomputed, [normal(2, 5, 32)], torch_call=twin(4, 2)),
]
