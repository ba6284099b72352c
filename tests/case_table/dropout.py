import numpy as np
import torch

from tests.cases import Case, normal


def seeded(p):
    def call(t, x):
        return t.nn.functional.dropout(x, p, generator=t.random.make_generator(3))

    def twin(t, x):  # torch draws other bits: it gets ours
        from tensorlite.random import dropout_mask, make_generator

        keep, scale = dropout_mask(tuple(x.shape), p, make_generator(3))
        return x * torch.from_numpy(keep) * scale

    return call, twin


CASES = [Case(f"dropout-{p}", call, [normal(4, 9)], torch_call=twin) for p in (0.0, 0.1, 0.5, 0.9, 1.0) for call, twin in [seeded(p)]]
CASES += [
    Case("dropout-evaluation", lambda t, x: t.nn.functional.dropout(x, 0.5, training=False), [normal(3, 4)]),
    Case("dropout-empty", seeded(0.5)[0], [lambda rng: np.zeros((0, 3))], torch_call=seeded(0.5)[1]),
]
