"""Many texts at once: the logits equal the model's, and do not depend on other texts that start or end."""

import numpy as np
import pytest

from gpt.generation.batch_decoder import BatchDecoder
from gpt.generation.decoders import make_batch_decoder, make_decoder
from gpt.generation.llama_decoder import BatchLlamaDecoder
from tests.test_gpt_cache import CONFIGS, make, own_logits

FAMILIES = [{}, {"model": "llama", "n_head": 4, "n_kv_head": 2}]
both_families = pytest.mark.parametrize("changes", FAMILIES, ids=["gpt", "llama"])


def expected(model, contexts: dict[int, np.ndarray]) -> np.ndarray:
    return np.concatenate([own_logits(model, contexts[slot][None]) for slot in sorted(contexts)])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_texts_can_start_and_end_at_any_step(changes, dtype):
    """40 steps of 5 slots: texts begin at any time, with any prompt; they grow by one id or two, are cropped, and end.

    In float32 the decoder is as near to the model in float64 as the model in float32 is: the same roundings, in another order.
    """
    rng = np.random.default_rng(1)
    same, model = make(**changes).to(dtype=dtype), make(**changes).to(dtype=np.float64)
    decoder = make_batch_decoder(same, 5)
    errors = []
    texts: dict[int, np.ndarray] = {}
    for _ in range(40):
        for slot in range(5):
            if slot not in texts:
                if rng.random() < 0.4:
                    texts[slot] = rng.integers(17, size=rng.integers(1, 12))
            elif rng.random() < 0.1:
                del texts[slot]
            else:
                texts[slot] = np.append(texts[slot], rng.integers(17, size=2 if rng.random() < 0.1 else 1))
        contexts = {slot: text[-12:] for slot, text in texts.items()}
        if not contexts:
            continue
        logits, truth = decoder(contexts), expected(model, contexts)
        assert logits.dtype == dtype
        errors.append([abs(found - truth).max() / abs(truth).max() for found in (logits, expected(same, contexts))])
    decoders, models = np.max(errors, axis=0)
    assert decoders <= (1e-12 if dtype == np.float64 else 8 * models)


@both_families
def test_long_prompts_beside_short_texts(changes):
    """More new rows than attention takes at once, beside single rows; whole, in parts, and after a common prefix."""
    rng = np.random.default_rng(2)
    model = make(dtype=np.float64, block_size=200, **changes)
    decoder = make_batch_decoder(model, 4)
    long, other = rng.integers(17, size=190), rng.integers(17, size=150)
    short = rng.integers(17, size=3)
    for contexts in (
        {0: short[:2], 1: long[:130], 2: short[:1]},
        {0: short, 1: long, 2: short[:2], 3: other},
        {0: long[:150], 1: np.append(long[:60], other[60:]), 2: short, 3: other[:70]},
    ):
        own = expected(model, contexts)
        assert abs(decoder(contexts) - own).max() <= 1e-12 * abs(own).max()


def test_the_bound_on_rounding_is_not_reached_by_batches():
    largest = 0.0
    for seed, changes in enumerate(CONFIGS.values()):
        for std in (0.02, 0.1, 0.3):
            model = make(seed, std, n_embd=32, **changes)
            decoder = make_batch_decoder(model, 8)
            rng = np.random.default_rng(seed)
            ids = rng.integers(17, size=(8, 12))
            for step in range(1, 13):
                contexts = {slot: ids[slot, : max(1, step - slot % 3)] for slot in range(8) if rng.random() < 0.8}
                if contexts:
                    logits = decoder(contexts)
                    largest = max(largest, float(abs(logits - expected(model, contexts)).max()) / decoder.rounding(logits))
    assert largest < 0.25, largest


@pytest.mark.parametrize("kind", ["llama's way", "tiny's way"])
def test_a_cache_grows_with_its_texts(kind, monkeypatch):
    """From room for 4 tokens on, with what is already there."""
    monkeypatch.setattr("gpt.generation.decoder.FIRST_ROOM", 4)
    model = make(dtype=np.float64, **CONFIGS[kind])
    several, one, ids = make_batch_decoder(model, 3), make_decoder(model), np.random.default_rng(0).integers(17, size=12)
    rooms = []
    for end in (3, 5, 6, 9, 12, 4, 11):
        contexts = {0: ids[:end], 2: ids[: max(1, end - 4)]}
        assert abs(several(contexts) - expected(model, contexts)).max() <= 1e-12 * abs(expected(model, contexts)).max()
        assert abs(one(ids[None, :end]) - expected(model, {0: ids[:end]})).max() <= 1e-12 * abs(expected(model, {0: ids[:end]})).max()
        assert [several.common_prefix(slot, ids) for slot in (0, 2)] == [end, max(1, end - 4)]
        rooms.append(several._cache.shape[2])
    assert rooms == [4, 8, 8, 12, 12, 12, 12]


def test_only_new_ids_are_computed(monkeypatch):
    decoder = make_batch_decoder(make(), 3)
    rows = []
    advance = decoder._advance
    monkeypatch.setattr(decoder, "_advance", lambda slots, known, contexts: rows.append(known) or advance(slots, known, contexts))
    ids = np.arange(12)
    decoder({0: ids[:5], 2: ids[:3]})
    decoder({0: ids[:6], 1: ids[:2], 2: ids[:4]})
    decoder({0: ids[:6], 2: np.append(ids[:2], 9)})
    decoder.forget(0)
    assert decoder.common_prefix(0, ids) == 0
    assert decoder.common_prefix(2, ids) == 2
    decoder({0: ids[:6]})
    decoder.reset()
    decoder({0: ids[:6]})
    assert rows == [[0, 0], [5, 0, 3], [5, 2], [0], [0]]


@both_families
def test_a_slot_does_not_use_numbers_of_an_earlier_text(changes):
    """A slot that held numbers that are not finite is masked like any other, once it has been emptied."""
    model = make(**changes)
    decoder = make_batch_decoder(model, 2)
    ids = np.arange(12)
    decoder({0: ids, 1: ids})
    decoder._cache[:, 1] = np.inf
    decoder.forget(1)
    contexts = {0: ids, 1: ids[:2]}
    own = expected(model, contexts)
    assert abs(decoder(contexts) - own).max() <= 3e-6 * abs(own).max()


@both_families
def test_an_interrupted_step_leaves_the_cache_consistent(changes, monkeypatch):
    model = make(**changes)
    decoder = make_batch_decoder(model, 2)
    ids = np.arange(12)
    decoder({0: ids[:4], 1: ids[:4]})
    with monkeypatch.context() as patched:
        patched.setattr(decoder, "_head", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decoder({0: np.append(ids[:3], 9), 1: ids[:5]})
    contexts = {0: ids[:5], 1: ids[:5]}
    own = expected(model, contexts)
    assert abs(decoder(contexts) - own).max() <= 3e-6 * abs(own).max()


def test_impossible_contexts_are_refused():
    decoder = make_batch_decoder(make(), 2)
    with pytest.raises(ValueError, match=r"1 to block_size \(12\) ids, got 0"):
        decoder({0: np.zeros(0, np.int64)})
    with pytest.raises(ValueError, match="got 13"):
        decoder({0: np.zeros(13, np.int64)})
    with pytest.raises(IndexError, match="slots go from 0 to 1, got 2"):
        decoder({2: np.zeros(3, np.int64)})
    for id in (-1, 17):
        with pytest.raises(IndexError, match="ids go from 0 to 16"):
            decoder({0: np.array([1]), 1: np.array([2, id])})


@both_families
def test_one_text_gives_the_decoders_logits(changes):
    """With one slot it is `Decoder` for one text; they share their parts, and this would see one of them go its own way."""
    model = make(dtype=np.float64, **changes)
    alone, together = make_decoder(model), make_batch_decoder(model, 1)
    ids = np.random.default_rng(0).integers(17, size=12)
    for end in range(1, 13):
        np.testing.assert_allclose(together({0: ids[:end]}), alone(ids[None, :end]), rtol=0, atol=1e-12)


def test_each_family_has_its_own_and_other_layers_have_none():
    gpt, llama = make(), make(model="llama")
    assert type(make_batch_decoder(gpt, 1)) is BatchDecoder
    assert type(make_batch_decoder(llama, 1)) is BatchLlamaDecoder
    llama.h[0].mlp.forward = lambda x: x * 2
    assert make_batch_decoder(llama, 1) is None
    with pytest.raises(TypeError, match="evaluate the model itself"):
        BatchLlamaDecoder(llama, 1)
