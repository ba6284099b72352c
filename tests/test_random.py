"""Random numbers: streams by name, and masks in pieces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.random import KeepReader, keep_mask, make_generator


@given(pieces=st.lists(st.integers(0, 13), max_size=9), p=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_pieces_of_a_mask_are_the_mask(pieces, p):
    whole, factor = keep_mask((sum(pieces),), p, make_generator(3))
    stream, other = make_generator(3), make_generator(3)
    reader = KeepReader(p, stream)
    read = np.concatenate([reader.read((n,)) for n in pieces] + [np.empty(0, bool)])
    keep_mask((sum(pieces),), p, other)
    assert np.array_equal(read, whole)
    assert reader.factor == factor
    assert stream.random() == other.random(), "both leave the stream at the same place"


def test_a_mask_keeps_as_much_as_it_says():
    keep, factor = keep_mask((1000, 1000), 0.2, make_generator(0))
    assert keep.dtype == bool
    assert abs(keep.mean() - 0.8) < 0.002
    assert abs(factor - 1.25) < 1e-4


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_probability_is_between_0_and_1(p):
    with pytest.raises(ValueError, match="between 0 and 1"):
        keep_mask((3,), p)


def test_streams_are_named_by_seed_and_key():
    first = make_generator(1, 2, 3).random(4)
    assert np.array_equal(first, make_generator(1, 2, 3).random(4))
    for other in (make_generator(1), make_generator(1, 3, 2), make_generator(2, 2, 3)):
        assert not np.array_equal(first, other.random(4))
    with pytest.raises(ValueError, match="negative"):
        make_generator(-1)
