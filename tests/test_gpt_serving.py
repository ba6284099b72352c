"""The engine that writes many texts at once: each is the text written alone, whoever comes and goes beside it."""

from __future__ import annotations

import queue
import threading
from dataclasses import replace

import numpy as np
import pytest

from data.tokenizer import CharTokenizer
from gpt.generation.chat_template import ChatTemplate
from gpt.generation.sampling import DivergedError, Sampling
from gpt.generation.stream import stream_text
from gpt.int8 import to_int8
from gpt.model import build_model
from gpt.serving import engine as engine_module
from gpt.serving.engine import Engine, ModelEvaluator, QueueFullError, StoppedError
from gpt.serving.metrics import Metrics
from gpt.serving.sequence import Piece, Settings
from tests.patience import PATIENCE
from tests.test_gpt_cache import SMALL, drawn_options, make

TOKENIZER = CharTokenizer("abcdefghijklmno \n")


class Client:
    """Collects the pieces of a text."""

    def __init__(self, cancel_after: int | None = None) -> None:
        self.pieces: list[Piece] = []
        self.done = threading.Event()
        self.cancel_after, self.generation = cancel_after, None

    def deliver(self, piece: Piece) -> None:
        self.pieces.append(piece)
        if self.cancel_after == len(self.pieces) and self.generation:
            self.generation.cancel()
        if piece.is_last:
            self.done.set()

    @property
    def text(self) -> str:
        assert self.done.wait(PATIENCE)
        assert self.pieces[-1].error is None, self.pieces[-1].error
        return "".join(piece.text for piece in self.pieces)


def submit(engine: Engine, prompt: str, settings: Settings, seed: int = 0, cancel_after: int | None = None) -> Client:
    client = Client(cancel_after)
    ids = np.asarray(TOKENIZER.encode(prompt), np.int64)
    (client.generation,) = engine.submit([ids], settings, [np.random.default_rng(seed)], [client.deliver])
    return client


def alone(model, prompt: str, settings: Settings, seed: int) -> str:
    return "".join(
        stream_text(
            model, TOKENIZER, prompt, settings.max_tokens, generator=np.random.default_rng(seed), stop=settings.stop,
            context_keep=settings.context_keep, **vars(settings.sampling),
        )
    )  # fmt: skip


@pytest.fixture
def engine():
    started = []

    def start(model=None, **settings) -> Engine:
        engine = Engine(model or make(), TOKENIZER, **settings)
        engine.start()
        started.append(engine)
        return engine

    yield start
    for one in started:
        one.stop()
        assert not one._thread.is_alive()


@pytest.mark.parametrize("kind", ["gpt", "llama", "llama in 8 bits", "bigram"])
def test_a_text_beside_others_is_the_text_alone(engine, kind, monkeypatch):
    """40 texts in 5 slots: any prompt, settings and length, some given up half way, long prompts read over several steps."""
    monkeypatch.setattr(engine_module, "PROMPT_TOKENS_A_STEP", 7)
    llama = {"model": "llama", "n_head": 4, "n_kv_head": 2}
    models = {"gpt": {}, "llama": llama, "llama in 8 bits": {**llama, "n_embd": 32, "n_inner": 32}}
    model = make(std=0.1, **models[kind]) if kind in models else build_model(replace(SMALL, model="bigram"))
    if kind == "llama in 8 bits":
        to_int8(model)
    rng = np.random.default_rng(3)
    running, asked = engine(model, slots=5), []
    assert isinstance(running.decoder, ModelEvaluator) == (kind == "bigram")
    for seed in range(40):
        prompt = TOKENIZER.decode(rng.integers(17, size=rng.integers(1, 20)))
        stop = ("ab", "c\n") if rng.random() < 0.3 else ()
        keep = int(rng.integers(1, 13)) if rng.random() < 0.7 else None
        settings = Settings(int(rng.integers(1, 25)), Sampling(**drawn_options(rng)), stop, keep, 2 if rng.random() < 0.5 else None)
        cancel_after = int(rng.integers(1, 5)) if rng.random() < 0.2 else None
        asked.append((prompt, settings, seed, submit(running, prompt, settings, seed, cancel_after)))
    for prompt, settings, seed, client in asked:
        if client.cancel_after is None:
            assert client.text == alone(model, prompt, settings, seed), (seed, settings)
    assert running.call(lambda: running.running).result(PATIENCE) == 0
    assert all(client.done.is_set() for *_, client in asked if client.cancel_after is None)


def test_where_rounding_could_change_a_token_the_model_decides(engine, monkeypatch):
    """Logits that are wrong as far as they may be, as those of another batch are in their last bits."""
    model, rng = make(std=0.02), np.random.default_rng(0)
    model.lm_head.weight.array[5] = model.lm_head.weight.array[9]  # these two always tie
    running = engine(model, slots=4)
    decoder, asked = running.decoder, []

    def wrong(contexts):
        logits = type(decoder).__call__(decoder, contexts)
        return (logits + rng.uniform(-0.9, 0.9, logits.shape) * 1e-3).astype(logits.dtype)

    class Wrong:
        slots, common_prefix, forget = decoder.slots, decoder.common_prefix, decoder.forget
        rounding = staticmethod(lambda logits: 1e-3)
        __call__ = staticmethod(wrong)

    running.decoder = Wrong()
    own = engine_module.model_logits
    monkeypatch.setattr(engine_module, "model_logits", lambda *given: asked.append(1) or own(*given))
    options = [{"temperature": 0}, {}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.9}, {"repetition_penalty": 1.3}]
    clients = [(i, Settings(12, Sampling(**options[i % 6]))) for i in range(24)]
    clients = [(i, settings, submit(running, "abc", settings, i)) for i, settings in clients]
    for i, settings, client in clients:
        assert client.text == alone(model, "abc", settings, i)
    assert 0 < len(asked) < 24 * 12


def test_a_slot_that_has_seen_a_prompt_is_taken_again(engine):
    running = engine(slots=3)
    settings = Settings(2, Sampling(temperature=0))
    for prompt in ("abcdef", "ghijkl"):
        assert submit(running, prompt, settings).text
    rows = []
    advance = running.decoder._advance
    running.decoder._advance = lambda slots, known, contexts: rows.append(known) or advance(slots, known, contexts)
    assert submit(running, "ghijklm", settings).text
    assert rows[0] == [6]


def test_the_queue_is_bounded(engine):
    running = engine(slots=1, queue=2)
    gate, began = threading.Event(), threading.Event()
    running.call(lambda: began.set() or gate.wait(PATIENCE))  # the engine waits, and so do all who ask
    assert began.wait(PATIENCE)
    clients = [submit(running, "a", Settings(3)) for _ in range(3)]  # one for the slot, two wait
    with pytest.raises(QueueFullError, match="3 texts are waiting, as many as the queue holds") as caught:
        submit(running, "a", Settings(3))
    assert caught.value.retry_after >= 1
    gate.set()
    assert all(len(client.text) == 3 for client in clients)


def test_who_goes_away_frees_the_slot(engine):
    running = engine(slots=1)
    gone = submit(running, "a", Settings(100_000, context_keep=6), cancel_after=3)
    assert submit(running, "b", Settings(3)).text
    assert not gone.done.is_set()
    assert len(gone.pieces) < 10
    assert "gpt_cancelled_total 1" in running.metrics.text(0, 0)


def test_a_broken_model_ends_its_texts_and_the_engine_goes_on(engine):
    model = make()
    running = engine(model, slots=2)
    weight = model.lm_head.weight.array
    kept = weight.copy()
    weight[:] = np.nan
    client = submit(running, "a", Settings(3))
    assert client.done.wait(PATIENCE)
    assert isinstance(client.pieces[-1].error, DivergedError)
    weight[:] = kept
    running.call(running.decoder.reset).result(PATIENCE)
    assert len(submit(running, "a", Settings(3)).text) == 3


def test_a_step_that_fails_ends_its_texts_and_the_engine_goes_on(engine, capsys):
    running = engine(slots=2)
    advance = running.decoder._advance

    def fail(*_):
        raise MemoryError("none left")

    running.decoder._advance = fail
    client = submit(running, "a", Settings(3))
    assert client.done.wait(PATIENCE)
    assert isinstance(client.pieces[-1].error, MemoryError)
    running.decoder._advance = advance
    assert len(submit(running, "a", Settings(3)).text) == 3


def test_stopping_tells_everybody(engine):
    running = engine(slots=1)
    clients = [submit(running, "a", Settings(10_000_000, context_keep=6)) for _ in range(2)]
    call = running.call(lambda: 7)
    running.stop()
    for client in clients:
        assert client.done.wait(PATIENCE)
        assert isinstance(client.pieces[-1].error, StoppedError)
    assert call.done()
    with pytest.raises(StoppedError):
        submit(running, "a", Settings(1))


def test_a_call_that_fails_tells_its_caller(engine):
    running = engine()
    with pytest.raises(ZeroDivisionError):
        running.call(lambda: 1 / 0).result(PATIENCE)
    assert running.call(lambda: 5).result(PATIENCE) == 5


def test_probabilities_are_the_models(engine):
    model = make(dtype=np.float64)
    running = engine(model)
    client = submit(running, "abc", Settings(6, Sampling(temperature=0.7, top_k=3), top_logprobs=4), seed=1)
    text = client.text
    tokens = [token for piece in client.pieces for token in piece.tokens]
    assert "".join(token.text for token in tokens) == text
    assert [token.start for token in tokens] == list(range(6))
    context = list(TOKENIZER.encode("abc"))
    for token in tokens:
        logits = engine_module.model_logits(model, np.array([context], np.int64))[0]
        log_p = logits - np.log(np.exp(logits).sum())
        assert token.logprob == pytest.approx(log_p[token.id], abs=1e-10)
        best = np.argsort(-log_p)[:4]
        assert [text for text, _ in token.top] == [TOKENIZER.decode([i]) for i in best]
        assert [p for _, p in token.top] == pytest.approx(list(log_p[best]), abs=1e-10)
        context.append(token.id)


def test_tokens_of_a_stop_string_are_not_shown(engine):
    """A bigram table that always writes abcdefghijk…: the text ends before "ef", and so do its tokens."""
    model = build_model(replace(SMALL, model="bigram"))
    model.wte.weight.array[:] = 20 * np.roll(np.eye(17), 1, axis=1)
    running = engine(model)
    client = submit(running, "a", Settings(16, Sampling(temperature=0), ("fz", "ef"), top_logprobs=0))
    assert client.text == "bcd"
    assert [token.text for piece in client.pieces for token in piece.tokens] == ["b", "c", "d"]
    assert client.pieces[-1].finish == "stop"
    assert client.pieces[-1].used == 5
    held = submit(running, "a", Settings(4, Sampling(temperature=0), ("efz",)))  # "e" waits, until it is clear that nothing follows
    assert held.text == "bcde"
    assert [token.text for piece in held.pieces for token in piece.tokens] == ["b", "c", "d", "e"]
    assert held.pieces[-1].finish == "length"


@pytest.mark.parametrize("template", [ChatTemplate(), ChatTemplate("<U>", "<A>", "<S>", "</>")], ids=["default", "tags"])
def test_marks_that_are_typed_begin_no_turn(template):
    rng = np.random.default_rng(0)
    parts = [*vars(template).values(), *(mark.strip() for mark in vars(template).values()), "#", "##", " ", "U", "x", ":", "\n", "<", "<A"]
    for _ in range(500):
        typed = "".join(rng.choice(parts) for _ in range(rng.integers(0, 9)))
        prompt = template.prompt([{"role": "user", "content": typed}])
        before, after = template.user, template.end + template.assistant
        assert prompt.startswith(before)
        assert prompt.endswith(after)
        inside = prompt[len(before) : len(prompt) - len(after)]
        assert not any(mark in inside for mark in template.stop)
        assert template.end.strip() not in inside or not template.end.strip()
    assert template.without_marks("a plain text # of < any kind:\n\n") == "a plain text # of < any kind:\n\n"


def test_metrics_are_prometheus():
    metrics = Metrics()
    for seconds in (0.02, 0.5):
        metrics.first_token(seconds)
    metrics.answered("/v1/models", 200)
    metrics.began(5)
    for _ in range(3):
        metrics.wrote_token()
    lines = metrics.text(1, 2).splitlines()
    for line in ('gpt_requests_total{route="/v1/models",status="200"} 1', "gpt_prompt_tokens_total 5", "gpt_generated_tokens_total 3",
                 "gpt_running 1", "gpt_waiting 2", 'gpt_time_to_first_token_seconds_bucket{le="0.03"} 1',
                 'gpt_time_to_first_token_seconds_bucket{le="+Inf"} 2', "gpt_time_to_first_token_seconds_sum 0.520000"):  # fmt: skip
        assert line in lines
    names = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert all(any(line.startswith(name) for name in names) for line in lines if not line.startswith("#"))


def test_pieces_arrive_in_order(engine):
    arrived: queue.Queue[Piece] = queue.Queue()
    running = engine()
    ids = np.asarray(TOKENIZER.encode("a"), np.int64)
    running.submit([ids], Settings(20), [np.random.default_rng(0)], [arrived.put])
    used = [arrived.get(timeout=PATIENCE).used for _ in range(20)]
    assert used == list(range(1, 21))
