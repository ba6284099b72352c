"""Text generation: the model's inputs, the pieces of text, and the state of the model afterwards."""

import itertools

import numpy as np
import pytest

import tensorlite as tl
from data.tokenizer import CharTokenizer, UnknownCharacterError
from gpt.config import GPTConfig
from gpt.generation.sampling import DivergedError
from gpt.generation.stream import context_length, generate_text, stream_text, stream_tokens
from gpt.model import LanguageModel, build_model
from tensorlite import random
from tensorlite.tape import is_grad_enabled

TOKEN = CharTokenizer.train("the quick brown fox\n")


def make(**changes) -> LanguageModel:
    config = GPTConfig(vocab_size=TOKEN.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=8, dropout=0.5)
    with random.use_generator(random.make_generator(0)):
        return build_model(GPTConfig(**{**vars(config), **changes}))


class Recorder(LanguageModel):
    """Predicts the next character of the alphabet with certainty, and notes what it was shown, in which state."""

    def __init__(self, vocab_size: int = TOKEN.vocab_size, block_size: int = 4) -> None:
        super().__init__(GPTConfig(vocab_size=vocab_size, block_size=block_size))
        self.table = tl.nn.Embedding(vocab_size, 1)  # so that there is a parameter, and a module below
        self.seen: list[list] = []
        self.states: list[tuple] = []

    def forward(self, idx, targets=None):
        self.seen.append(idx.tolist())
        self.states.append((self.training, self.table.training, is_grad_enabled()))
        size = self.config.vocab_size
        return tl.tensor(np.where((idx.numpy()[..., None] + 1) % size == np.arange(size), 100.0, 0.0)), None


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- the text -----------------------------------------------------------------------------------------


def test_the_context_grows_and_is_cropped_to_block_size() -> None:
    model = Recorder(block_size=4)
    tokens = list(stream_tokens(model, [0, 1], 4))
    assert [int(token) for token in tokens] == [2, 3, 4, 5]
    assert model.seen == [[[0, 1]], [[0, 1, 2]], [[0, 1, 2, 3]], [[1, 2, 3, 4]]]


def test_with_context_keep_the_context_fills_up_again() -> None:
    model = Recorder(block_size=4)
    list(stream_tokens(model, [0, 1], 8, context_keep=2))
    shown = ([0, 1], [0, 1, 2], [0, 1, 2, 3], [3, 4], [3, 4, 5], [3, 4, 5, 6], [6, 7], [6, 7, 8])
    assert model.seen == [[context] for context in shown]


def test_how_much_context_there_is() -> None:
    assert [context_length(tokens, 8, 5) for tokens in range(1, 18)] == [1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7, 8, 5]
    assert [context_length(tokens, 4, 4) for tokens in range(1, 9)] == [1, 2, 3, 4, 4, 4, 4, 4]  # the course's crop
    assert [context_length(tokens, 3, 1) for tokens in range(1, 9)] == [1, 2, 3, 1, 2, 3, 1, 2]


def test_a_prompt_longer_than_block_size_is_cropped() -> None:
    model = Recorder(block_size=4)
    list(stream_tokens(model, range(10), 1))
    assert model.seen == [[[6, 7, 8, 9]]]


def test_text_is_the_prompt_and_its_continuation() -> None:
    model = make()
    pieces = list(stream_text(model, TOKEN, "the ", 20, generator=rng()))
    assert len(pieces) == 20
    assert all(len(piece) == 1 for piece in pieces)
    assert generate_text(model, TOKEN, "the ", 20, generator=rng()) == "the " + "".join(pieces)


def test_the_generator_determines_the_text() -> None:
    model = make()
    texts = {generate_text(model, TOKEN, "the ", 40, generator=rng(seed)) for seed in (0, 0, 1, 2)}
    assert len(texts) == 3
    tl.manual_seed(5)
    first = generate_text(model, TOKEN, "the ", 40)
    tl.manual_seed(5)
    assert generate_text(model, TOKEN, "the ", 40) == first


def test_greedy_generation_equals_top_k_1() -> None:
    model = make()
    assert generate_text(model, TOKEN, "the ", 20, temperature=0) == generate_text(model, TOKEN, "the ", 20, top_k=1)


def test_the_same_tokens_as_the_models_own_generate() -> None:
    model = make().eval()
    ids = TOKEN.encode("the ").astype(np.int64)
    whole = model.generate(tl.tensor(ids[None]), 20, temperature=0.8, top_k=5, rng=rng()).numpy()[0]
    streamed = list(stream_tokens(model, ids, 20, temperature=0.8, top_k=5, generator=rng()))
    np.testing.assert_array_equal(whole, [*ids, *streamed])


def test_a_batch_of_prompts() -> None:
    model = Recorder()
    steps = list(stream_tokens(model, [[0, 1], [5, 6], [3, 9]], 3))
    np.testing.assert_array_equal(np.stack(steps, axis=1), [[2, 3, 4], [7, 8, 9], [10, 11, 12]])


def test_an_empty_prompt_starts_from_a_newline_that_is_not_shown() -> None:
    model = Recorder()
    text = generate_text(model, TOKEN, "", 2)
    newline = TOKEN.encode("\n").tolist()
    assert model.seen[0] == [newline]
    assert text == TOKEN.decode([newline[0] + 1, newline[0] + 2])


def test_an_empty_prompt_without_newlines_starts_from_the_first_token() -> None:
    tokenizer = CharTokenizer.train("abc")
    model = Recorder(vocab_size=3)
    assert generate_text(model, tokenizer, max_new_tokens=4) == "bcab"


def test_ids_beyond_the_tokenizer_are_never_drawn() -> None:
    tokenizer = CharTokenizer.train("ab")
    pieces = list(stream_text(Recorder(vocab_size=64), tokenizer, "b", 50, generator=rng()))  # it wants to say token 2
    assert set(pieces) <= {"a", "b"}


def test_zero_new_tokens_give_no_text() -> None:
    assert list(stream_text(make(), TOKEN, "the ", 0)) == []
    assert generate_text(make(), TOKEN, "the ", 0) == "the "


# --- the state of the model ---------------------------------------------------------------------------


def test_predictions_are_made_in_eval_mode_and_off_the_tape() -> None:
    model = Recorder().train()
    list(stream_text(model, TOKEN, "the ", 2))
    assert model.states == [(False, False, False)] * 2
    assert (model.training, model.table.training, is_grad_enabled()) == (True, True, True)


def test_dropout_is_off_in_every_mode() -> None:
    model = make()
    assert generate_text(model.train(), TOKEN, "the ", 20, temperature=0) == generate_text(model.eval(), TOKEN, "the ", 20, temperature=0)


def test_mixed_modes_are_restored() -> None:
    model = Recorder().train()
    model.table.eval()
    generate_text(model, TOKEN, "the ", 2)
    assert (model.training, model.table.training) == (True, False)


def test_between_two_pieces_and_after_an_early_stop_the_model_can_be_trained() -> None:
    model = make().train()
    for _ in itertools.islice(stream_text(model, TOKEN, "the ", 100), 3):
        assert model.training
        assert is_grad_enabled()
        _, loss = model(tl.tensor([[1, 2, 3]]), tl.tensor([[2, 3, 4]]))
        loss.backward()
    assert model.training
    assert is_grad_enabled()


def test_an_error_in_the_model_does_not_change_its_mode() -> None:
    model = Recorder().train()
    model.forward = lambda idx: 1 / 0
    with pytest.raises(ZeroDivisionError):
        generate_text(model, TOKEN, "the ", 2)
    assert model.training
    assert model.table.training
    assert is_grad_enabled()


def test_inside_no_grad_the_tape_is_not_turned_on() -> None:
    with tl.no_grad():
        generate_text(make(), TOKEN, "the ", 2)
        assert not is_grad_enabled()


# --- complaints ---------------------------------------------------------------------------------------


def test_a_prompt_with_unseen_characters_is_refused_at_once() -> None:
    with pytest.raises(UnknownCharacterError, match=r"'Z' \(U\+005A\) at position 0, '!' \(U\+0021\) at position 4"):
        stream_text(make(), TOKEN, "Zoo !")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must not be negative, got -1"),
        ({"temperature": -0.5}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 2}, "top_p must be above 0"),
        ({"context_keep": 0}, r"context_keep goes from 1 to block_size \(8\), got 0"),
        ({"context_keep": 9}, r"context_keep goes from 1 to block_size \(8\), got 9"),
    ],
)
def test_options_out_of_range_are_refused_at_once(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream_text(make(), TOKEN, "the ", **options)


def test_an_empty_prompt_of_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        stream_tokens(make(), [], 1)


def test_a_model_with_nan_logits_is_an_error() -> None:
    model = make()
    model.wte.weight.array[...] = np.nan
    with pytest.raises(DivergedError, match="has diverged"):
        generate_text(model, TOKEN, "the ", 1)
