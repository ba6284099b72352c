from tests.cases import Case, fixed, integers, normal

REPEATS = fixed([[1, 1, 1, 0], [3, 1, 0, 1]])


def call(t, ids, weight):
    return t.nn.functional.embedding(ids, weight)


CASES = [
    Case("embedding", call, [integers(2, 6, high=5), normal(5, 4)]),
    Case("embedding-repeats", call, [REPEATS, normal(5, 3)]),
    Case("embedding-all-the-same", call, [fixed([2] * 50), normal(3, 4)], float32=4e-6),
    Case("embedding-vector-of-ids", call, [integers(7, high=5), normal(5, 4)]),
    Case("embedding-one-id", call, [fixed(3), normal(5, 4)]),
    Case("embedding-no-ids", call, [integers(0, high=5), normal(5, 4)]),
    Case("embedding-one-channel", call, [integers(6, high=5), normal(5, 1)]),
    Case("embedding-padding", lambda t, ids, w: t.nn.functional.embedding(ids, w, padding_idx=1), [REPEATS, normal(5, 3)], smooth=False),
    # not smooth: the gradient of the padding row is defined to be 0, which is not its derivative
]
