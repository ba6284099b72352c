"""`tensorlite.compat.composed` and `.questions`: other ops, one after the other, and what has no gradient."""

from tests.cases import Case, distinct, fixed, integers, mask, normal

NO_GRADIENT = False  # integers in, or bools out

CASES = [
    Case("t", lambda t, x, v: (x.t(), t.t(v)), [normal(3, 4), normal(3)]),
    Case("outer", lambda t, x, y: (t.outer(x, y), x.outer(y)), [normal(3), normal(4)]),
    Case("dot", lambda t, x, y: (t.dot(x, y), x.dot(y)), [normal(4), normal(4)]),
    Case("mv", lambda t, x, y: (t.mv(x, y), x.mv(y)), [normal(3, 4), normal(4)]),
    Case("addmm", lambda t, x, a, b: t.addmm(x, a, b, beta=0.5, alpha=2), [normal(3), normal(2, 4), normal(4, 3)]),
    Case("lerp", lambda t, x, y: (t.lerp(x, y, 0.3), x.lerp(y, 2.0)), [normal(3, 4), normal(3, 4)]),
    Case("addcmul", lambda t, x, a, b: (t.addcmul(x, a, b, value=0.5), x.addcmul(a, b)), [normal(3, 4), normal(4), normal(3, 1)]),
    Case("addcdiv", lambda t, x, a, b: t.addcdiv(x, a, b, value=0.5), [normal(3, 4), normal(4), distinct(3, 1, gap=1.0)]),
    Case(
        "cosine_similarity",
        lambda t, x, y: (t.cosine_similarity(x, y), t.nn.functional.cosine_similarity(x, y, 0)),
        [normal(3, 4), normal(3, 4)],
    ),
    Case("repeat_interleave", lambda t, x: (t.repeat_interleave(x, 2), x.repeat_interleave(3, dim=1)), [normal(2, 3)]),
    Case("repeat_interleave-each", lambda t, x: x.repeat_interleave(t.tensor([2, 0, 1]), dim=0), [normal(3, 2)]),
    Case("masked_select", lambda t, x, m: (t.masked_select(x, m), x.masked_select(m[0])), [normal(3, 4), mask(3, 4)]),
    Case(
        "swapaxes", lambda t, x: (x.swapaxes(0, 2), t.swapaxes(x, 1, -1), t.movedim(x, 0, 2), x.movedim((0, 1), (2, 0))), [normal(2, 3, 4)]
    ),
    Case("vstack", lambda t, x, y: (t.vstack((x, y)), t.hstack((x, y)), t.hstack((x[0], y[0, :2]))), [normal(3, 3), normal(3, 3)]),
    Case("expand_as", lambda t, x, y: (x.expand_as(y), y.view_as(y.T), y.reshape_as(y.T), x.type_as(y)), [normal(1, 3), normal(3, 3)]),
    Case("clip", lambda t, x: (t.clip(x, -0.3, 0.3), x.clip(min=0.11)), [distinct(3, 4)]),
    Case(
        "where-of-one", lambda t, x: (*t.where(x > 0), x.nonzero(), t.nonzero(x > 0, as_tuple=True)[1]), [normal(3, 4)], smooth=NO_GRADIENT
    ),
    Case(
        "and-or-not",
        lambda t, x, m, n: (
            ~m,
            m & (x > 0),
            m | (x > 0),
            m ^ (x > 0),
            ~n,
            n & 6,
            n | 1,
            n ^ n.flip(0),
            6 & n,
            m & m[0],
            t.logical_xor(m, n),
        ),
        [normal(3, 4), mask(3, 4), integers(3, 4, high=9)],
        smooth=NO_GRADIENT,
    ),
    Case(
        "unique",
        lambda t, n: (t.unique(n), *n.unique(return_inverse=True, return_counts=True)),
        [integers(3, 4, high=5)],
        smooth=NO_GRADIENT,
    ),
    Case("bincount", lambda t, n: (t.bincount(n), n.bincount(minlength=9)), [integers(7, high=5)], smooth=NO_GRADIENT),
    Case("count_nonzero", lambda t, n: (t.count_nonzero(n), n.count_nonzero(dim=1)), [integers(3, 4, high=3)], smooth=NO_GRADIENT),
    Case("isclose", lambda t, x: (t.isclose(x, x + 1e-9), t.isclose(x, x * 1.1)), [fixed([1.0, 2.0, 1e-9])], smooth=NO_GRADIENT),
    Case(
        "sum-and-others-in-torchs-other-words",
        lambda t, x: (
            *(
                x.sum(axis=1),
                t.mean(x, axis=0, keepdims=True),
                x.sum(dtype=t.float64),
                t.softmax(x, axis=-1),
                x.var(dim=1, correction=None),
            ),
            *(t.add(x, x, alpha=2), x.sub(x, alpha=-1), t.sum(input=x, dim=0), t.flip(x, dims=(0,)), x.permute(dims=(1, 0))),
        ),
        [normal(3, 4)],
    ),
]
