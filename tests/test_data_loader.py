"""The loader: the split, the windows, their determinism, and the figures in its complaints."""

import json

import numpy as np
import pytest

from data.errors import DataError
from data.loader import BatchError, RandomBatches, split_tokens


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed))


# --- the split ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "fraction", "cut"), [(100, 0.1, 90), (1_115_394, 0.1, 1_003_854), (7, 0.5, 3), (10, 0, 10), (0, 0.1, 0)]
)
def test_split_keeps_the_order(length: int, fraction: float, cut: int) -> None:
    train, val = split_tokens(np.arange(length), fraction)
    assert len(train) == cut  # of Tiny Shakespeare, nanoGPT's own 1,003,854
    np.testing.assert_array_equal(np.concatenate([train, val]), np.arange(length))


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_split_refuses_impossible_fractions(fraction: float) -> None:
    with pytest.raises(BatchError, match="val_fraction must be at least 0 and below 1, got"):
        split_tokens(np.arange(10), fraction)


# --- the batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_y_is_x_one_token_later(dtype: type) -> None:
    batches = RandomBatches(np.arange(1000, dtype=dtype), batch_size=5, block_size=8, generator=generator())
    for _ in range(20):
        x, y = batches.next_batch()
        assert x.shape == y.shape == (5, 8)
        assert x.dtype == y.dtype == np.int64
        np.testing.assert_array_equal(y, x + 1)
        np.testing.assert_array_equal(x, x[:, :1] + np.arange(8))


def test_every_window_is_drawn_and_equally_often() -> None:
    batches = RandomBatches(np.arange(14), batch_size=1000, block_size=4, generator=generator())
    starts = np.concatenate([batches.next_batch()[0][:, 0] for _ in range(20)])
    counts = np.bincount(starts, minlength=10)
    assert len(counts) == 10  # the last window ends with the last token
    expected = len(starts) / 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-square with 9 degrees of freedom, 0.1%


def test_the_shortest_possible_text_has_one_window() -> None:
    x, y = RandomBatches(np.array([3, 1, 2]), batch_size=2, block_size=2, generator=generator()).next_batch()
    assert x.tolist() == [[3, 1], [3, 1]]
    assert y.tolist() == [[1, 2], [1, 2]]


def test_batches_share_no_memory_with_the_text() -> None:
    tokens = np.arange(100)
    x, y = RandomBatches(tokens, batch_size=2, block_size=4, generator=generator()).next_batch()
    x[...] = -1
    assert (y >= 0).all()
    np.testing.assert_array_equal(tokens, np.arange(100))


def test_a_memory_map_gives_the_same_batches(tmp_path) -> None:
    np.arange(500, dtype=np.uint16).tofile(tmp_path / "train.bin")
    mapped = np.memmap(tmp_path / "train.bin", np.uint16, mode="r")
    in_memory = RandomBatches(np.arange(500), batch_size=3, block_size=16, generator=generator())
    for a, b in zip(RandomBatches(mapped, 3, 16, generator()).next_batch(), in_memory.next_batch(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert type(a) is np.ndarray


def test_the_seed_decides() -> None:
    def first(seed: int) -> np.ndarray:
        return RandomBatches(np.arange(10_000), 4, 8, generator(seed)).next_batch()[0]

    np.testing.assert_array_equal(first(1), first(1))
    assert (first(1) != first(2)).any()


@pytest.mark.parametrize("bits", [np.random.SFC64, np.random.PCG64, np.random.MT19937, np.random.Philox])
def test_the_position_is_restored_exactly(bits: type) -> None:
    batches = RandomBatches(np.arange(10_000), 4, 8, np.random.Generator(bits(1)))
    batches.next_batch()
    state = json.loads(json.dumps(batches.state_dict()))
    expected = [batches.next_batch()[0] for _ in range(5)]

    fresh = RandomBatches(np.arange(10_000), 4, 8, np.random.Generator(bits(2)))
    for restored in (batches, fresh):
        restored.load_state_dict(state)
        np.testing.assert_array_equal([restored.next_batch()[0] for _ in range(5)], expected)


def test_a_position_does_not_move_with_the_loader() -> None:
    batches = RandomBatches(np.arange(10_000), 4, 8, generator())
    state = batches.state_dict()
    before = json.dumps(state)
    batches.next_batch()
    assert json.dumps(state) == before


def test_a_position_of_another_kind_of_generator_is_refused() -> None:
    state = RandomBatches(np.arange(100), 4, 8, np.random.default_rng(0)).state_dict()
    with pytest.raises(BatchError, match="of a PCG64 generator, but the batches are drawn by SFC64"):
        RandomBatches(np.arange(100), 4, 8, generator()).load_state_dict(state)


# --- complaints ---------------------------------------------------------------------------------------


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(BatchError) as raised:
        RandomBatches(np.arange(20), 4, 64, generator(), name="validation split")
    assert isinstance(raised.value, DataError)
    assert str(raised.value) == (
        "the validation split is too short: it has 20 tokens, but one example takes block_size + 1 = 65; "
        "use a longer text, or a block_size of at most 19."
    )


def test_a_text_that_is_too_short_by_one_token_is_refused() -> None:
    with pytest.raises(BatchError, match=r"it has 8 tokens, but one example takes block_size \+ 1 = 9"):
        RandomBatches(np.arange(8), 4, 8, generator())


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_that_is_far_too_short_is_refused(length: int) -> None:
    with pytest.raises(BatchError, match="use a longer text, or give it a larger share of the text"):
        RandomBatches(np.arange(length), 4, 8, generator())


@pytest.mark.parametrize(
    ("batch_size", "block_size", "name"), [(0, 8, "batch_size"), (-1, 8, "batch_size"), (4, 0, "block_size"), (4, -3, "block_size")]
)
def test_sizes_below_one_are_refused(batch_size: int, block_size: int, name: str) -> None:
    with pytest.raises(BatchError, match=rf"{name} must be at least 1, got -?\d"):
        RandomBatches(np.arange(100), batch_size, block_size, generator())


def test_tokens_with_two_dimensions_are_refused() -> None:
    with pytest.raises(BatchError, match=r"one row of ids, got shape \(10, 10\)"):
        RandomBatches(np.zeros((10, 10), int), 2, 2, generator())
