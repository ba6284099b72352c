from tests.cases import Case, normal


def ours(n_head):
    return lambda t, qkv: t.nn.functional.causal_self_attention(qkv, n_head)


def twin(n_head):  # as nanoGPT writes it
    def call(t, qkv):
        B, T, C3 = qkv.shape
        q, k, v = (x.view(B, T, n_head, C3 // 3 // n_head).transpose(1, 2) for x in qkv.split(C3 // 3, dim=2))
        y = t.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).reshape(B, T, C3 // 3)

    return call


def case(name, n_head, *shape):
    return Case(f"causal_self_attention-{name}", ours(n_head), [normal(*shape)], torch_call=twin(n_head))


CASES = [
    case("two-heads", 2, 2, 5, 24),
    case("one-head", 1, 2, 5, 12),
    case("heads-of-one", 4, 2, 5, 12),
    case("one-token", 2, 3, 1, 24),
    case("heads-of-eight", 2, 1, 9, 48),
    case("more-than-a-block", 2, 1, 70, 12),
]
