"""The cache of keys and values: every token is the one without it, and where rounding could change one, the model is asked."""

import dataclasses

import numpy as np
import pytest

import tensorlite as tl
from gpt.config import GPTConfig
from gpt.generation import llama_decoder
from gpt.generation import stream as inference
from gpt.generation.decoder import Decoder, supports
from gpt.generation.decoders import make_decoder
from gpt.generation.llama_decoder import LlamaDecoder
from gpt.generation.sampling import Sampling, _zero_outside_nucleus, choose_tokens, sampling_probabilities
from gpt.generation.stream import stream_tokens
from gpt.model import build_model
from tensorlite import nn

SMALL = GPTConfig(vocab_size=17, block_size=12, n_layer=3, n_head=2, n_embd=16)
CONFIGS = {
    "tiny's way": {},
    "the course's way": {"bias": True, "tied_head": False, "head_bias": True, "activation": "relu"},
    "GPT-2's way": {"bias": True, "activation": "gelu_tanh"},
    "fixed waves": {"positions": "sinusoidal", "tied_head": False},
    "one layer, one head": {"n_layer": 1, "n_head": 1},
    "narrow inside, another epsilon": {"n_inner": 9, "layer_norm_epsilon": 0.25, "bias": True},
    "llama's way": {"model": "llama", "n_head": 4, "n_kv_head": 2},
    "Qwen3's way": {"model": "llama", "n_kv_head": 1, "qk_norm": True, "tied_head": False, "rope_theta": 100.0},
}


def make(seed: int = 0, std: float = 0.3, dtype=np.float32, **changes):
    """A model whose distribution is far from uniform, so that wrong logits would give wrong tokens."""
    rng = tl.manual_seed(seed)
    model = build_model(dataclasses.replace(SMALL, **changes)).to(dtype=dtype).eval()
    for parameter in model.parameters():
        parameter.array[...] += std * rng.standard_normal(parameter.shape)
    return model


def own_logits(model, ids: np.ndarray) -> np.ndarray:
    with tl.no_grad():
        return model(tl.tensor(ids))[0].array[:, -1]


# --- the logits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_the_logits_equal_the_models(changes, dtype):
    """In float32 the decoder is as near to the model in float64 as the model in float32 is: the same roundings, in another order."""
    same, model = make(**changes).to(dtype=dtype), make(**changes).to(dtype=np.float64)
    decoder = make_decoder(same)
    ids = np.random.default_rng(0).integers(17, size=(3, 20))
    errors = []
    for end in (*range(1, 20), 20, 20, 4, 9):  # one more, a crop at each, the same again, back, and on by five
        context = ids[:, max(0, end - 12) : end]
        logits = decoder(context)
        expected = own_logits(model, context)
        assert logits.dtype == dtype
        assert logits.shape == (3, 17)
        errors.append([abs(found - expected).max() / abs(expected).max() for found in (logits, own_logits(same, context))])
    decoders, models = np.max(errors, axis=0)
    assert decoders <= (1e-12 if dtype == np.float64 else 8 * models)


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_attention_over_a_long_context_works_in_parts(changes):
    """More new rows at once than `_attend` takes: whole parts, a rest, and some with rows before them."""
    model = make(dtype=np.float64, **{"block_size": 200, **changes})
    decoder = make_decoder(model)
    ids = np.random.default_rng(0).integers(17, size=(2, 300))
    for start, end in ((0, 130), (0, 200), (3, 70), (3, 203), (50, 178), (50, 179)):
        expected = own_logits(model, ids[:, start:end])
        assert abs(decoder(ids[:, start:end]) - expected).max() <= 1e-12 * abs(expected).max(), (start, end)


def test_a_long_prompt_is_read_in_parts(monkeypatch):
    """Of each part but the last only keys and values are needed; the text before it is in the cache."""
    monkeypatch.setattr(llama_decoder, "_PROMPT_ROWS", 7)
    model = make(dtype=np.float64, **{"block_size": 40, **CONFIGS["llama's way"]})
    decoder = make_decoder(model)
    parts = []
    read = decoder._read
    monkeypatch.setattr(decoder, "_read", lambda ids, start: parts.append((start, ids.shape[1])) or read(ids, start))
    ids = np.random.default_rng(0).integers(17, size=(2, 40))
    for end in (3, 24, 25):
        expected = own_logits(model, ids[:, :end])
        assert abs(decoder(ids[:, :end]) - expected).max() <= 1e-12 * abs(expected).max()
    assert parts == [(0, 3), (3, 7), (10, 7), (17, 7), (24, 1)]


@pytest.mark.parametrize("layers", [1, 2])
def test_only_in_one_block_could_a_full_cache_slide(layers, monkeypatch):
    """20 tokens, of which the last sees the keys of 12. They were rotated by their places in the whole text, which does not matter. But
    those of the second block were computed from vectors that had seen all tokens, and in the window they have not."""
    model = make(dtype=np.float64, **{"block_size": 20, **CONFIGS["llama's way"], "n_layer": layers})
    decoder = make_decoder(model)
    ids = np.random.default_rng(0).integers(17, size=(1, 20))
    decoder(ids[:, :19])
    attend = decoder._attend
    monkeypatch.setattr(decoder, "_read_token", lambda token, place: decoder._read(np.array([[token]]), place))
    monkeypatch.setattr(decoder, "_attend", lambda q, k, v: attend(q, k[..., -12:], v[..., -12:, :]))
    slid, window = decoder(ids), own_logits(model, ids[:, 8:])
    difference = abs(slid - window).max() / abs(window).max()
    assert (difference < 1e-12) == (layers == 1), difference
    assert layers == 1 or difference > 1e-3, difference


def test_the_bound_on_rounding_is_not_reached():
    """The largest difference over many contexts is a small part of what is allowed for."""
    largest = 0.0
    for seed, changes in enumerate(CONFIGS.values()):
        for std in (0.02, 0.1, 0.3):
            model = make(seed, std, n_embd=32, **changes)
            decoder = make_decoder(model)
            ids = np.random.default_rng(seed).integers(17, size=(8, 12))
            for end in range(1, 13):
                logits = decoder(ids[:, :end])
                largest = max(largest, float(abs(logits - own_logits(model, ids[:, :end])).max()) / decoder.rounding(logits))
    assert largest < 0.25, largest


def test_large_scores_do_not_overflow():
    """exp of a score above 88 is infinite in float32; the largest of each row is subtracted first."""
    model = make(dtype=np.float32)
    for block in model.h:
        block.attn.c_attn.weight.array[...] *= 100
    ids = np.random.default_rng(0).integers(17, size=(2, 10))
    logits, expected = make_decoder(model)(ids), own_logits(model, ids)
    assert np.isfinite(logits).all()
    assert abs(logits - expected).max() <= 1e-3 * abs(expected).max()


def test_the_common_beginning_is_not_computed_again(monkeypatch):
    model = make()
    decoder = make_decoder(model)
    rows = []
    advance = decoder._advance
    monkeypatch.setattr(decoder, "_advance", lambda ids, start: rows.append((start, ids.shape[1])) or advance(ids, start))
    ids = np.arange(12)[None]
    decoder(ids[:, :5])
    decoder(ids[:, :6])
    decoder(ids[:, :6])
    changed = ids.copy()
    changed[0, 3] = 9
    decoder(changed[:, :8])
    decoder(changed[:, 1:9])  # a crop: nothing is where it was
    decoder.reset()
    decoder(changed[:, 1:9])
    assert rows == [(0, 5), (5, 1), (5, 1), (3, 5), (0, 8), (0, 8)]


def test_new_weights_are_used_after_a_reset():
    model = make(bias=True)
    decoder = make_decoder(model)
    ids = np.arange(5)[None]
    before = decoder(ids)
    for parameter in model.parameters():
        parameter.array[...] = parameter.array * 1.5 + 0.1
    decoder.reset()
    expected = own_logits(model, ids)
    assert abs(decoder(ids) - expected).max() <= 1e-5 * abs(expected).max()
    assert abs(before - expected).max() > 0.1


def test_the_models_weights_are_not_changed():
    model = make(bias=True)
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    make_decoder(model)(np.arange(5)[None])
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name], err_msg=name)


def test_an_impossible_context_is_refused():
    decoder = make_decoder(make())
    with pytest.raises(ValueError, match=r"1 to block_size \(12\) ids, got 0"):
        decoder(np.zeros((1, 0), np.int64))
    with pytest.raises(ValueError, match="got 13"):
        decoder(np.zeros((1, 13), np.int64))
    for id in (-1, 17):
        with pytest.raises(IndexError, match="ids go from 0 to 16"):
            decoder(np.full((1, 2), id))
        decoder(np.array([[3, 4]]))
        with pytest.raises(IndexError, match="ids go from 0 to 16"):
            decoder(np.array([[3, 4, id]]))


# --- the tokens ---------------------------------------------------------------------------------------


def drawn_options(rng: np.random.Generator) -> dict:
    """Settings of every kind, often several at once."""
    options = {"temperature": float(rng.choice([0, 0.3, 0.8, 1.0, 1.0, 1.7]))}
    if rng.random() < 0.4:
        options["top_k"] = int(rng.integers(1, 25))
    if rng.random() < 0.4:
        options["top_p"] = float(rng.uniform(0.05, 1))
    if rng.random() < 0.3:
        options["min_p"] = float(rng.uniform(0, 0.5))
    if rng.random() < 0.3:
        options["repetition_penalty"] = float(rng.uniform(0.8, 1.6))
    return options


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_the_tokens_are_the_same_with_and_without_a_cache(changes):
    """80 samples a config, 640 in all: random prompts, settings and seeds, most of them past block_size."""
    rng = np.random.default_rng(5)
    models = [make(seed, std, **changes) for seed, std in enumerate((0.02, 0.1, 0.3, 0.6))]
    for sample in range(80):
        model, options = models[sample % 4], drawn_options(rng)
        prompt = rng.integers(17, size=rng.integers(1, 18))
        length = int(rng.integers(1, 20))
        if rng.random() < 0.5:
            options["context_keep"] = int(rng.integers(1, 13))
        with_cache, without = (
            [int(id) for id in stream_tokens(model, prompt, length, generator=np.random.default_rng(sample), use_cache=use, **options)]
            for use in (True, False)
        )
        assert with_cache == without, (sample, options)


def test_with_context_keep_most_tokens_compute_one_row(monkeypatch):
    """12 tokens fill the context; then 6 are kept, encoded again, and 6 more are added one by one."""
    model = make()
    decoder = make_decoder(model)
    rows = []
    advance = decoder._advance
    monkeypatch.setattr(decoder, "_advance", lambda ids, start: rows.append(ids.shape[1]) or advance(ids, start))
    list(stream_tokens(model, [1], 12 + 2 * 7, decoder=decoder, context_keep=6))
    assert rows == [1] * 12 + [6, 1, 1, 1, 1, 1, 1] * 2


def test_context_keep_gives_the_same_text_in_one_call_or_several():
    model = make()
    options = {"temperature": 0, "context_keep": 5}
    whole = [1, 2, *(int(id) for id in stream_tokens(model, [1, 2], 40, **options))]
    text = [1, 2]
    while len(text) < 42:
        text += [int(id) for id in stream_tokens(model, text, 4, **options)]
    assert text == whole


def test_a_batch_gives_the_same_tokens_as_each_row_alone():
    model = make()
    prompts = np.random.default_rng(0).integers(17, size=(4, 5))
    rngs = [[np.random.default_rng(row) for row in range(4)] for _ in range(2)]
    together = np.stack(list(stream_tokens(model, prompts, 20, generator=rngs[0], temperature=0.9)), axis=1)
    for row in range(4):
        alone = [int(id) for id in stream_tokens(model, prompts[row], 20, generator=rngs[1][row], temperature=0.9)]
        assert together[row].tolist() == alone


def test_a_decoder_can_be_used_for_the_next_call():
    model = make()
    decoder = make_decoder(model)
    first = [int(id) for id in stream_tokens(model, [1, 2], 3, temperature=0, decoder=decoder)]
    text = [1, 2, *first, 4, 4]
    with_it, without = (
        [int(id) for id in stream_tokens(model, text, 6, temperature=0, **options)]
        for options in ({"decoder": decoder}, {"use_cache": False})
    )
    assert with_it == without


def test_if_rounding_could_change_a_token_the_model_decides(monkeypatch):
    """A decoder that is wrong in the last bits, as far as it may be, never changes a token."""
    model = make(std=0.02)  # nearly uniform: the two most likely tokens are often close
    model.lm_head.weight.array[5] = model.lm_head.weight.array[9]  # and these two always tie
    asked = []
    own = inference.model_logits
    rng = np.random.default_rng(0)

    class Wrong(Decoder):
        def __call__(self, context):
            logits = super().__call__(context)
            return (logits + rng.uniform(-0.9, 0.9, logits.shape) * self.rounding(logits)).astype(logits.dtype)

        def rounding(self, logits):
            return 1e-3

    monkeypatch.setattr(inference, "model_logits", lambda *args: asked.append(1) or own(*args))
    for seed in range(40):
        options = [{"temperature": 0}, {}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.9}, {"repetition_penalty": 1.3}][seed % 6]
        asked.clear()
        found = [
            int(id) for id in stream_tokens(model, [seed % 17], 15, generator=np.random.default_rng(seed), decoder=Wrong(model), **options)
        ]
        in_doubt = len(asked)
        expected = [
            int(id) for id in stream_tokens(model, [seed % 17], 15, generator=np.random.default_rng(seed), use_cache=False, **options)
        ]
        assert found == expected
        assert len(asked) == in_doubt + 15
    assert in_doubt < 15


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0}, {}, {"temperature": 0.1}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.1}, {"repetition_penalty": 1.5},
        {"top_k": 2, "top_p": 0.6}, {"min_p": 0.3, "top_p": 0.6},
    ],
)  # fmt: skip
def test_a_certain_choice_is_not_changed_by_errors_within_the_bound(options):
    """Random errors, and the worst: half of the logits up and half down."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 11)) * 2
    uniforms, seen = rng.random(3000), rng.random((3000, 11)) < 0.5
    sampling, error = Sampling(**options), 0.02
    ids, certain = choose_tokens(logits, uniforms, sampling, seen, error)
    np.testing.assert_array_equal(ids, choose_tokens(logits, uniforms, sampling, seen)[0])
    assert 0.1 < certain.mean() < 1
    changed = np.zeros(3000, bool)
    for _ in range(60):
        wrong = logits + error * rng.choice([-1, 1], logits.shape)
        others, _ = choose_tokens(wrong, uniforms, sampling, seen)
        changed |= others != ids
        assert not (changed & certain).any()
    assert changed.any()  # or else this test could not fail


def test_a_token_that_top_k_may_leave_out_moves_the_end_of_the_nucleus():
    """What then comes in or goes out is a part of what `_zero_outside_nucleus` returns."""
    rng, moved = np.random.default_rng(0), 0
    for _ in range(500):
        p, top_p = rng.random(8), rng.uniform(0.2, 0.9)
        without = p * (p > p.min())
        open_sum = _zero_outside_nucleus(p.copy(), top_p, 1e-9, float(p.min()))
        for row in (full := p.copy(), without):
            _zero_outside_nucleus(row, top_p, 0.0, 0.0)
        changed = ((full > 0) != (without > 0)) & (p > p.min())
        assert p[changed].sum() <= open_sum * (1 + 1e-6)
        moved += changed.any()
    assert moved  # or else this test could not fail


@pytest.mark.parametrize("options", [{"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.1}])
@pytest.mark.parametrize("end", [0, 1])
def test_a_token_that_may_come_in_before_the_first_or_after_the_last_is_not_forgotten(options, end):
    """Each row by itself, so that tokens which are left out are left out of the arithmetic; uniform numbers near 0 or 1."""
    rng, sampling, error = np.random.default_rng(0), Sampling(**options), 0.05
    changed = 0
    for _ in range(400):
        logits, u = rng.normal(size=(1, 9)), np.array([abs(end - 0.1 * rng.random())])
        ids, certain = choose_tokens(logits, u, sampling, None, error)
        wrong = logits + error * rng.choice([-1, 1], (40, 9))
        others, _ = choose_tokens(wrong, np.repeat(u, 40), sampling)
        assert not certain[0] or (others == ids).all()
        changed += (others != ids).any()
    assert changed  # or else this test could not fail


@pytest.mark.parametrize("options", [{"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.001}])
def test_a_limit_among_unlikely_tokens_makes_few_choices_doubtful(options):
    """Whether an unlikely token is kept or left out moves the boundaries by its probability, and no more. Here a thousand tokens share a
    tenth of the probability, so some are near every limit."""
    rng = np.random.default_rng(0)
    logits = np.log(np.concatenate([np.full((400, 10), 0.09), rng.uniform(0.5e-4, 1.5e-4, (400, 1000))], axis=1))
    _, certain = choose_tokens(logits, rng.random(400), Sampling(**options), error=1e-3)
    # Of the nucleus, a tenth of whose sum is open at most, little is: the error of a sum, 5e-4, and a token; times eleven boundaries.
    assert certain.mean() > 0.9


@pytest.mark.parametrize("V", [5, 3000])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 1.0])
def test_the_nucleus_is_that_of_all_numbers_in_order(top_p, V):
    """Only numbers that can be needed are sorted."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, V)) * 3
    logits[:, : V // 4] = logits[:, V // 4 : V // 2]  # equal ones: the first of them comes first
    p = sampling_probabilities(logits, Sampling(top_p=top_p))
    full = np.exp(logits - logits.max(axis=1, keepdims=True))
    for row, kept in zip(full, p, strict=True):
        order = np.argsort(-row, kind="stable")
        before = row[order].cumsum() - row[order]
        np.testing.assert_array_equal(np.sort(order[before < top_p * row.sum()]), np.flatnonzero(kept))


# --- models that the decoder does not know ------------------------------------------------------------


def test_a_model_with_a_replaced_layer_is_not_supported():
    class Louder(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 3

    model = make()
    assert supports(model)
    model.h[1].mlp.c_proj = Louder(64, 16, bias=False)
    assert not supports(model)
    with pytest.raises(TypeError, match="evaluate the model itself"):
        Decoder(model)
    ids = [int(id) for id in stream_tokens(model, [1], 5, temperature=0)]
    assert ids == model.generate(tl.tensor([[1]]), 5, temperature=0).numpy()[0, 1:].tolist()


def test_a_bigram_needs_no_cache():
    model = build_model(dataclasses.replace(SMALL, model="bigram"))
    assert not supports(model)
    assert len(list(stream_tokens(model, [1], 5))) == 5


def test_a_llama_with_a_replaced_layer_has_no_decoder():
    model = make(model="llama")
    assert isinstance(make_decoder(model), LlamaDecoder)
    model.h[1].mlp.forward = lambda x: x * 2
    assert make_decoder(model) is None
    with pytest.raises(TypeError, match="evaluate the model itself"):
        LlamaDecoder(model)
    with pytest.raises(TypeError, match="evaluate the model itself"):
        Decoder(make(model="llama"))
    ids = [int(id) for id in stream_tokens(model, [1], 5, temperature=0)]
    assert ids == model.generate(tl.tensor([[1]]), 5, temperature=0).numpy()[0, 1:].tolist()
