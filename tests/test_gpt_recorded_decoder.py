"""The decoders on a GPU: the logits are the model's, and a token is one launch of a recorded step."""

import re

import numpy as np
import pytest

import tensorlite as tl
from gpt.generation import recorded_decoder
from gpt.generation.decoders import make_batch_decoder, make_decoder
from gpt.generation.recorded_decoder import BatchRecordedDecoder, RecordedDecoder
from gpt.generation.stream import stream_tokens
from tensorlite.backend import to_numpy
from tensorlite.kernels.cuda import cached_attention
from tensorlite.kernels.cuda.graph import CaptureError, Recorder
from tests.standin import machine
from tests.test_gpt_cache import CONFIGS, SMALL, make

IDS = np.random.default_rng(0).integers(17, size=(3, 30))


@pytest.fixture(autouse=True)
def small_rooms(monkeypatch):
    """The cache grows within a test."""
    monkeypatch.setattr(recorded_decoder, "FIRST_ROOM", 4)


def on_gpu(**changes):
    return make(**changes).to("cupy")


def own_logits(model, ids):
    with tl.no_grad():
        return to_numpy(model(tl.tensor(ids, device="cupy"))[0].array[:, -1])


def assert_near(decoder, logits, expected):
    assert isinstance(logits, np.ndarray) and logits.shape == expected.shape
    assert abs(logits - expected).max() <= decoder.rounding(expected)


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_the_logits_are_the_models(changes, any_cupy):
    model = on_gpu(**changes)
    decoder = make_decoder(model)
    assert type(decoder) is RecordedDecoder
    # a prompt, one token after the other past the first room, several, the same again, back, on, a window that slides
    for begin, end in [(0, 3), *((0, end) for end in range(4, 10)), (0, 12), (0, 12), (0, 5), (0, 6), (1, 13), (2, 14), (14, 15)]:
        context = IDS[:, begin:end]
        assert_near(decoder, decoder(context), own_logits(model, context))


@pytest.mark.parametrize("changes", [CONFIGS["GPT-2's way"], CONFIGS["llama's way"]], ids=["GPT", "Llama"])
def test_texts_come_and_go_in_slots(changes, any_cupy):
    model = on_gpu(**changes)
    decoder, rng = make_batch_decoder(model, 3), np.random.default_rng(1)
    assert type(decoder) is BatchRecordedDecoder
    texts = {0: list(IDS[0, :3]), 2: list(IDS[1, :1])}
    for turn in range(9):
        if turn == 3:
            texts[1] = list(IDS[2, :5])  # a prompt beside texts that take a step
        if turn == 6:
            decoder.forget(0)
            texts[0] = list(IDS[2, 7:9])  # in the place of another
        present = {slot: np.array(text) for slot, text in texts.items() if slot != turn % 4}  # some wait
        logits = decoder(present)
        expected = np.concatenate([own_logits(model, present[slot][None]) for slot in sorted(present)])
        assert_near(decoder, logits, expected)
        for slot in present:
            texts[slot].append(int(rng.integers(17)))


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "top_k": 5, "generator": 1}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("keep", [None, 6])
def test_the_tokens_are_those_of_the_cpu(keep, sampling, any_cupy):
    """In one layer, so that the stand-in takes seconds: past the context too."""
    changes = {"model": "llama", "n_layer": 1, "n_kv_head": 1}
    found = []
    for model in (make(**changes), on_gpu(**changes)):
        options = {**sampling, "generator": np.random.default_rng(1)}
        found.append([int(t) for t in stream_tokens(model, IDS[0, :3], 20, context_keep=keep, **options)])
    assert found[0] == found[1]


def test_a_token_is_one_launch_and_one_read(standin, monkeypatch):
    recorded, record = [], Recorder.record
    monkeypatch.setattr(Recorder, "record", lambda recorder, work: recorded.append(work) or record(recorder, work))
    model = on_gpu(**CONFIGS["llama's way"])
    decoder = make_decoder(model)
    for end in range(5, 9):  # a prompt; then there is room for 8 tokens: two plain steps, and one that is recorded
        decoder(IDS[:1, :end])
    assert len(recorded) == 1
    reads = len(machine.machine.reads)
    kernels = len(machine.machine.launches)
    decoder(IDS[:1, :8])  # the last token once more: every call computes it
    assert len(machine.machine.reads) == reads + 1, "the logits"
    assert len(machine.machine.launches) == kernels, "nothing of ours is queued by itself"
    decoder(IDS[:1, :9])
    assert decoder._cached.room == 12, "the cache has grown to the whole context"
    for end in range(10, 13):
        decoder(IDS[:1, :end])
    assert len(recorded) == 2, "the addresses have changed"
    decoder.reset()
    decoder(IDS[:1, :3])
    assert_near(decoder, decoder(IDS[:1, :4]), own_logits(model, IDS[:1, :4]))


@pytest.mark.parametrize("changes", [CONFIGS["GPT-2's way"], CONFIGS["llama's way"]], ids=["GPT", "Llama"])
def test_a_block_is_five_kernels(changes, standin):
    decoder = make_decoder(on_gpu(**changes))
    decoder(IDS[:1, :1])
    machine.machine.work.clear()
    decoder(IDS[:1, :2])
    block = ["matvec", "attend_cached", "matvec", "matvec", "matvec"]
    names = [work.name for work in machine.machine.work]
    assert names[names.index("matvec") :] == [*block * SMALL.n_layer, "matvec"]


def test_new_weights_are_used_after_a_reset(any_cupy):
    model = on_gpu()
    decoder = make_decoder(model)
    for end in range(3, 8):
        decoder(IDS[:1, :end])
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5  # other arrays
    decoder.reset()
    for end in range(3, 8):
        assert_near(decoder, decoder(IDS[:1, :end]), own_logits(model, IDS[:1, :end]))


def test_a_step_that_cannot_be_recorded_is_computed_plainly(standin, monkeypatch):
    def refuse(recorder, work):
        raise CaptureError("planted")

    monkeypatch.setattr(Recorder, "record", refuse)
    model = on_gpu()
    decoder = make_decoder(model)
    decoder(IDS[:1, :1])
    decoder(IDS[:1, :2])
    with pytest.warns(UserWarning, match="its step cannot be recorded: planted"):
        decoder(IDS[:1, :3])
    assert_near(decoder, decoder(IDS[:1, :4]), own_logits(model, IDS[:1, :4]))  # without another warning


def test_a_model_in_training_stays_so(standin):
    model = on_gpu(dropout=0.5).train()
    decoder = make_decoder(model)
    contexts = [decoder(IDS[:1, :end]) for end in (2, 3)]
    assert all(module.training for module in model.modules())
    for end, logits in zip((2, 3), contexts, strict=True):
        assert_near(decoder, logits, own_logits(model.eval(), IDS[:1, :end]))


def test_models_that_it_does_not_know_get_another(standin, monkeypatch):
    model = on_gpu()
    model.ln_f.forward = lambda x: x
    assert make_decoder(model) is None
    assert not isinstance(make_decoder(on_gpu(dtype=np.float64)), RecordedDecoder)
    assert not isinstance(make_decoder(make()), RecordedDecoder)
    assert not isinstance(make_batch_decoder(make(), 2), BatchRecordedDecoder)
    monkeypatch.setattr(recorded_decoder, "LARGEST_ROOM", SMALL.block_size - 1)
    assert not isinstance(make_decoder(on_gpu()), RecordedDecoder)


def test_bad_ids_are_refused_before_they_reach_the_device(any_cupy):
    decoder = make_decoder(on_gpu())
    for ids in ([[17]], [[-1]], [[3, 17]]):
        with pytest.raises(IndexError, match=re.escape(f"ids go from 0 to 16, got {min(ids[0])} to {max(ids[0])}.")):
            decoder(np.array(ids))


# --- the kernel ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("D, room, places", [(8, 5, [4, 0, -1, 2]), (64, 600, [599, 255, 256]), (96, 300, [299]), (256, 20, [7, 19])])
@pytest.mark.parametrize("order", ["ascending", "shuffled"])
@pytest.mark.parametrize("H, KV", [(4, 2), (1, 1)])
def test_attention_of_one_token(H, KV, order, D, room, places, any_cupy):
    """Against softmax in float64; the places before are random, and those behind are nan, which nobody may read."""
    machine.machine.order = order
    B, rng = len(places), np.random.default_rng(0)
    qkv, keys, values = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((B, (H + 2 * KV) * D), (B, KV, D, room), (B, KV, room, D))
    )
    for text, place in enumerate(places):
        keys[text, :, :, max(place, 0) :] = values[text, :, max(place, 0) :] = np.nan
    tables = [rng.standard_normal((room, D // 2)).astype(np.float32) for _ in range(2)]
    given = [any_cupy.asarray(x) for x in (qkv, np.array(places), keys, values, *tables)]
    for rotated in (False, True):
        gq, gplaces, gkeys, gvalues = (x.copy() for x in given[:4])
        y = to_numpy(cached_attention.attend_cached(gq, H, gplaces, gkeys, gvalues, tuple(given[4:]) if rotated else None))
        for text, place in enumerate(places):
            q, k, v = np.split(qkv[text].reshape(-1, D).astype(np.float64), [H, H + KV])
            if place < 0:
                assert not y[text].any()
                continue
            if rotated:
                cos, sin = (np.tile(table[place].astype(np.float64), 2) for table in tables)
                q, k = (x * cos + np.concatenate([-x[:, D // 2 :], x[:, : D // 2]], axis=1) * sin for x in (q, k))
            for head in range(H):
                kv = head // (H // KV)
                all_keys = np.concatenate([keys[text, kv, :, :place].T, k[kv, None]])  # (place + 1, D)
                all_values = np.concatenate([values[text, kv, :place], v[kv, None]])
                weights = np.exp(all_keys @ q[head] / np.sqrt(D) - (all_keys @ q[head] / np.sqrt(D)).max())
                right = weights @ all_values / weights.sum()
                assert abs(y[text, head * D : (head + 1) * D] - right).max() < 1e-5
                np.testing.assert_allclose(to_numpy(gkeys)[text, kv, :, place], k[kv], atol=1e-5)
                np.testing.assert_array_equal(to_numpy(gvalues)[text, kv, place], v[kv].astype(np.float32))
    machine.machine.order = "ascending"
