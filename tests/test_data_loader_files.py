"""Batches from token files: the same as from memory, with constant memory use; shuffled epochs, shards, positions."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.loader import BatchError, EpochBatches, RandomBatches, Shard
from data.shuffle import shuffled
from data.token_file import TokenFile, TokenFileError

ROOT = Path(__file__).parents[1]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed))


def write(path: Path, tokens, dtype="uint16") -> TokenFile:
    np.asarray(tokens, dtype).tofile(path)
    return TokenFile(path, dtype)


# --- the file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_file_is_what_was_written(tmp_path: Path, dtype: str) -> None:
    tokens = generator().integers(2**16, size=5000)
    file = write(tmp_path / "train.bin", tokens, dtype)
    assert len(file) == 5000
    assert file.dtype == dtype
    np.testing.assert_array_equal(file.open(), tokens)
    np.testing.assert_array_equal(file[10:20], tokens[10:20])
    np.testing.assert_array_equal(np.concatenate(list(file.chunks(7))), tokens)
    assert file.max() == tokens.max()
    assert not file.open().flags.writeable
    assert type(file[10:20]) is np.ndarray  # a copy, not a map


def test_an_empty_file(tmp_path: Path) -> None:
    file = write(tmp_path / "train.bin", [])
    assert len(file) == 0
    assert file.open().shape == (0,)
    assert file.max() == -1
    with pytest.raises(BatchError, match="it has 0 tokens"):
        RandomBatches(file, 1, 1, generator())


@pytest.mark.parametrize(("size", "dtype"), [(7, "uint16"), (6, "uint32"), (1, "uint32")])
def test_a_file_size_that_is_not_a_whole_number_of_tokens_is_refused(tmp_path: Path, size: int, dtype: str) -> None:
    (tmp_path / "train.bin").write_bytes(bytes(size))
    with pytest.raises(TokenFileError, match=f"its {size} bytes are not a whole number of {dtype} tokens"):
        TokenFile(tmp_path / "train.bin", dtype)


def test_unreadable_token_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="there is no file"):
        TokenFile(tmp_path / "train.bin")
    with pytest.raises(TokenFileError, match="is a directory"):
        TokenFile(tmp_path)
    with pytest.raises(TokenFileError, match="uint16 or uint32, not as int64"):
        write(tmp_path / "train.bin", [1, 2], "int64")


def test_a_file_that_changes_during_training_is_detected(tmp_path: Path) -> None:
    file = write(tmp_path / "train.bin", range(100))
    batches = RandomBatches(file, 2, 4, generator())
    batches.next_batch()
    write(tmp_path / "new.bin", range(100, 200)).path.replace(tmp_path / "train.bin")
    with pytest.raises(TokenFileError, match="has been changed while it was in use; start again"):
        batches.next_batch()
    (tmp_path / "train.bin").unlink()
    with pytest.raises(TokenFileError, match="there is no file"):
        batches.next_batch()


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_batches_from_a_file_are_those_from_memory(tmp_path: Path, dtype: str) -> None:
    tokens = generator(1).integers(2**16, size=5000)
    file = write(tmp_path / "train.bin", tokens, dtype)
    for on_disk, in_memory in (
        (RandomBatches(file, 3, 16, generator()), RandomBatches(tokens, 3, 16, generator())),
        (EpochBatches(file, 3, 16, seed=5), EpochBatches(tokens, 3, 16, seed=5)),
    ):
        for _ in range(10):
            for a, b in zip(on_disk.next_batch(), in_memory.next_batch(), strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == np.int64
                assert type(a) is np.ndarray


# --- flat memory --------------------------------------------------------------------------------------

MEGABYTES = 256
MEASURE = """
import sys
import numpy as np
from data.loader import EpochBatches, RandomBatches
from data.token_file import TokenFile

def resident():  # megabytes of files that this process has in memory
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssFile")) / 1024

file, kind = TokenFile(sys.argv[1]), sys.argv[2]
tokens = np.memmap(sys.argv[1], np.uint16, mode="r") if kind == "kept open" else file
batches = EpochBatches(tokens, 64, 256, seed=0) if kind == "epoch" else RandomBatches(tokens, 64, 256, np.random.default_rng(0))
start = resident()
print(max(resident() - start for _ in range(150) if batches.next_batch()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from Linux's /proc")
def test_memory_stays_flat_on_a_file_larger_than_its_limit(tmp_path: Path) -> None:
    with open(tmp_path / "train.bin", "wb") as file:
        file.truncate(MEGABYTES * 2**20)  # a hole, which takes no room on the disk but is mapped like any other file

    def growth(kind: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / "train.bin"), kind], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    limit = MEGABYTES / 4
    assert growth("kept open") > limit, "this check could not fail"
    assert growth("random") < limit
    assert growth("epoch") < limit


def test_the_order_of_a_seed_stays_the_same():
    """A checkpoint has only the position in this order, so another order would continue a run with other data."""
    assert shuffled(np.arange(10), 10, seed=0).tolist() == [0, 5, 3, 7, 6, 1, 9, 8, 4, 2]
    assert shuffled(np.arange(5), 1000, seed=7, epoch=3).tolist() == [731, 673, 262, 210, 60]
    assert shuffled(np.arange(3), 2**33, seed=1).tolist() == [2258709305, 474026229, 4320476481]


# --- shuffled epochs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 1000, 65536, 65537])
def test_a_shuffled_order_has_everything_exactly_once(length: int) -> None:
    for epoch in range(3):
        order = shuffled(np.arange(length), length, seed=1, epoch=epoch)
        np.testing.assert_array_equal(np.sort(order), np.arange(length))
        assert order.dtype == np.int64


def test_a_shuffled_order_of_any_length_can_be_computed_in_pieces() -> None:
    order = shuffled(np.arange(1000), 1000, seed=3)
    np.testing.assert_array_equal([shuffled(np.array(i), 1000, seed=3) for i in range(1000)], order)
    far = shuffled(np.arange(10**15, 10**15 + 1000), 10**16, seed=3)
    assert len(set(far.tolist())) == 1000
    assert 0 <= far.min() < far.max() < 10**16


def test_seed_and_epoch_decide_the_order() -> None:
    orders = {tuple(shuffled(np.arange(100), 100, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_a_shuffled_order_is_uncorrelated_with_the_original() -> None:
    length = 10_000
    order = shuffled(np.arange(length), length, seed=0)
    assert abs(np.corrcoef(np.arange(length), order)[0, 1]) < 0.04  # 4 standard deviations
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.04
    assert (np.diff(order) == 1).sum() < 10  # neighbours stay neighbours about once
    fixed = [int((shuffled(np.arange(50), 50, seed) == np.arange(50)).sum()) for seed in range(400)]
    assert 0.75 < np.mean(fixed) < 1.25  # of a random order, one item on average is where it was


def test_every_item_is_equally_often_in_every_place() -> None:
    places = np.array([shuffled(np.arange(6), 6, seed) for seed in range(6000)])
    counts = np.array([np.bincount(places[:, i], minlength=6) for i in range(6)])
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 52.6  # 25 degrees of freedom, 0.1%


@pytest.mark.parametrize(("length", "batch_size"), [(1000, 4), (1001, 7), (1008, 125), (9, 1), (17, 5)])
def test_an_epoch_covers_every_window_exactly_once(length: int, batch_size: int) -> None:
    batches = EpochBatches(np.arange(length), batch_size, 8, seed=0)
    assert batches.windows == (length - 1) // 8
    starts = []
    while batches.position < 6 * batches.windows:
        x, y = batches.next_batch()
        assert x.shape == y.shape == (batch_size, 8)
        np.testing.assert_array_equal(y, x + 1)
        np.testing.assert_array_equal(x, x[:, :1] + np.arange(8))
        starts += x[:, 0].tolist()
    epochs = np.array(starts[: 6 * batches.windows]).reshape(6, -1)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(batches.windows) * 8, epochs.shape))
    if batches.windows > 10:
        assert len({tuple(epoch) for epoch in epochs}) == 6


def test_the_epoch_is_counted() -> None:
    batches = EpochBatches(np.arange(81), 5, 8, seed=0)
    seen = []
    for _ in range(5):
        seen.append(batches.epoch)
        batches.next_batch()
    assert seen == [0, 0, 1, 1, 2]


def test_the_seed_decides() -> None:
    def first(seed: int) -> np.ndarray:
        return EpochBatches(np.arange(10_000), 4, 8, seed).next_batch()[0]

    np.testing.assert_array_equal(first(1), first(1))
    assert (first(1) != first(2)).any()


# --- shards -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_random_shards_have_no_token_in_common_and_miss_none(count: int) -> None:
    seen = []
    for index in range(count):
        batches = RandomBatches(np.arange(500), 50, 4, generator(index), shard=Shard(index, count))
        x, y = (np.concatenate(part) for part in zip(*(batches.next_batch() for _ in range(60)), strict=True))
        seen.append(set(x.ravel().tolist()) | set(y.ravel().tolist()))
    assert sum(map(len, seen)) == 500
    assert set.union(*seen) == set(range(500))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_epoch_shards_together_are_the_whole_epoch(count: int, batch_size: int) -> None:
    whole = EpochBatches(np.arange(1001), batch_size * count, 8, seed=2)
    shards = [EpochBatches(np.arange(1001), batch_size, 8, seed=2, shard=Shard(index, count)) for index in range(count)]
    for _ in range(3 * whole.windows // (batch_size * count) + 1):
        parts = [shard.next_batch()[0][:, 0] for shard in shards]
        together = np.stack(parts, axis=1).ravel()  # dealt out in turn
        np.testing.assert_array_equal(together, whole.next_batch()[0][:, 0])


@pytest.mark.parametrize(("index", "count"), [(1, 1), (-1, 2), (2, 2), (0, 0)])
def test_shard_numbers_out_of_range_are_refused(index: int, count: int) -> None:
    with pytest.raises(BatchError, match=rf"have the numbers 0 to {count - 1}, got {index}"):
        Shard(index, count)


def test_a_shard_that_is_too_short_is_refused() -> None:
    with pytest.raises(BatchError, match=r"the corpus's share 1 of 3 is too short: it has 33 tokens, but one example takes .* = 41"):
        RandomBatches(np.arange(100), 1, 40, generator(), shard=Shard(1, 3))


# --- positions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 1, 13, 40])
def test_the_position_is_restored_exactly(tmp_path: Path, taken: int) -> None:
    file = write(tmp_path / "train.bin", range(1000))
    batches = EpochBatches(file, 4, 8, seed=1, shard=Shard(1, 2))
    for _ in range(taken):
        batches.next_batch()
    state = json.loads(json.dumps(batches.state_dict()))
    expected = [batches.next_batch() for _ in range(40)]
    for restored in (batches, EpochBatches(file, 4, 8, seed=1, shard=Shard(1, 2))):
        restored.load_state_dict(state)
        np.testing.assert_array_equal([restored.next_batch() for _ in range(40)], expected)


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"seed": 2}, "seed is 1, here it is 2"), ({"block_size": 4}, "windows"), ({"shard": Shard(0, 2)}, "shard is")],
)
def test_a_position_of_another_order_is_refused(changes: dict, what: str) -> None:
    state = EpochBatches(np.arange(100), 4, block_size=8, seed=1).state_dict()
    with pytest.raises(BatchError, match=what):
        EpochBatches(np.arange(100), 4, **{"block_size": 8, "seed": 1, **changes}).load_state_dict(state)
