"""Random numbers: streams by name, and masks in pieces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.random import (
    DropoutMaskReader,
    draw_dropout_key,
    dropout_mask,
    make_generator,
    next_dropout_key,
    use_dropout_key,
    use_generator,
)


@given(pieces=st.lists(st.integers(0, 13), max_size=9), p=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_the_pieces_of_a_mask_equal_the_whole_mask(pieces, p):
    whole, factor = dropout_mask((sum(pieces),), p, make_generator(3))
    stream, other = make_generator(3), make_generator(3)
    reader = DropoutMaskReader(p, stream)
    read = np.concatenate([reader.read((n,)) for n in pieces] + [np.empty(0, bool)])
    dropout_mask((sum(pieces),), p, other)
    assert np.array_equal(read, whole)
    assert reader.factor == factor
    assert stream.random() == other.random(), "both leave the stream at the same place"


def test_a_mask_keeps_the_expected_share():
    keep, factor = dropout_mask((1000, 1000), 0.2, make_generator(0))
    assert keep.dtype == bool
    assert abs(keep.mean() - 0.8) < 0.002
    assert abs(factor - 1.25) < 1e-4


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_probability_is_between_0_and_1(p):
    with pytest.raises(ValueError, match="between 0 and 1"):
        dropout_mask((3,), p)


def test_seed_and_key_determine_a_generator():
    first = make_generator(1, 2, 3).random(4)
    assert np.array_equal(first, make_generator(1, 2, 3).random(4))
    for other in (make_generator(1), make_generator(1, 3, 2), make_generator(2, 2, 3)):
        assert not np.array_equal(first, other.random(4))
    with pytest.raises(ValueError, match="negative"):
        make_generator(-1)


def test_calls_of_dropout_are_numbered_from_0_in_each_block():
    key, other = draw_dropout_key(make_generator(1)), draw_dropout_key(make_generator(2))
    with use_dropout_key(key):
        assert [next_dropout_key(np)[1] for _ in range(3)] == [0, 1, 2]
        with use_dropout_key(other):
            assert next_dropout_key(np)[0] is other
        found, number = next_dropout_key(np)
        assert found is key and number == 3
    with use_dropout_key(key):
        assert next_dropout_key(np)[1] == 0


def test_without_a_block_a_key_is_drawn_from_the_given_or_the_threads_generator():
    def drawn(seed):
        return draw_dropout_key(make_generator(seed)).tolist()

    with use_generator(make_generator(5)):
        key, number = next_dropout_key(np)
        assert (key.tolist(), number) == (drawn(5), 0)
        with use_dropout_key(draw_dropout_key(make_generator(6))):
            assert next_dropout_key(np, make_generator(7))[0].tolist() == drawn(7)
    assert drawn(5) != drawn(6)


@pytest.mark.parametrize("key", [np.zeros(2, np.int64), np.zeros(3, np.uint32)])
def test_a_dropout_key_is_two_numbers_of_32_bits(key):
    with pytest.raises(ValueError, match="two uint32"), use_dropout_key(key):
        pass
