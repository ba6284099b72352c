"""The table of README.md and README.zh-TW.md: one line for each kind of measurement, ours beside torch, from the recorded results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import common
from benchmarks.common import table
from benchmarks.configurations import CONFIGURATIONS


@dataclass(frozen=True)
class Words:
    """The words of the table in one language; the fields in braces are filled in."""

    header: tuple[str, str, str, str]
    layers: str
    cpu_step: str
    same_blas: str
    other_machine: str
    whole_run: str
    generation: str
    gpu_step: str
    tokens_per_second: str
    seconds: str
    compiled: str
    cpu: str
    gpu: str


ENGLISH = Words(
    header=("what", "ours", "torch", "speed, ours to torch"),
    layers="{n_layer} layers, {n_embd} wide, block {block_size}",
    cpu_step="training step, {layers}, CPU",
    same_blas="the same with both BLAS equally fast (AVX2)",
    other_machine="the same on {processor}, by processes",
    whole_run="nanoGPT's training run for a CPU, {steps} steps",
    generation="text from the preset `course`, token by token, CPU",
    gpu_step="training step of GPT-2, {precision}, GPU",
    tokens_per_second="{} tokens/s",
    seconds="{} s",
    compiled="{ratio} (compiled: {compiled})",
    cpu="CPU: {cores} cores of {processor}.",
    gpu="GPU: {gpu}.",
)
CHINESE = Words(
    header=("項目", "本專案", "torch", "速度比（本專案／torch）"),
    layers="{n_layer} 層、寬度 {n_embd}、block {block_size}",
    cpu_step="訓練一步，{layers}，CPU",
    same_blas="同上，但兩邊的 BLAS 一樣快（AVX2）",
    other_machine="同上，在 {processor} 上，以多行程計算",
    whole_run="nanoGPT 的 CPU 訓練流程，{steps} 步",
    generation="以預設組合 `course` 逐一生成 token，CPU",
    gpu_step="GPT-2 訓練一步，{precision}，GPU",
    tokens_per_second="每秒 {} 個 token",
    seconds="{} 秒",
    compiled="{ratio}（編譯後：{compiled}）",
    cpu="CPU：{processor}，{cores} 核心。",
    gpu="GPU：{gpu}。",
)
CONFIGURATION, TEXT, PRECISIONS = "B16", "course, 256", ("bfloat16", "float32")  # of the many that are measured


def summary(words: Words) -> str:
    """The table, and the machines below it; empty if nothing is recorded."""
    lines = [dict(zip(words.header, cells, strict=True)) for cells in _cells(words)]
    return f"{table(lines)}\n\n{_machines(words)}" if lines else ""


def _cells(words: Words) -> Iterator[tuple[str, str, str, str]]:
    layers = words.layers.format(**vars(CONFIGURATIONS[CONFIGURATION].model))
    if step := _first(_results("train_step"), configuration=CONFIGURATION):
        yield words.cpu_step.format(layers=layers), *_tokens(words, step["sides"])
    if step := _first(_results("train_step_avx2"), configuration=CONFIGURATION):
        yield words.same_blas, *_tokens(words, step["sides"])
    other = _content("train_step_xeon")
    if step := _first(other.get("results"), configuration=CONFIGURATION):
        processor = other["machine"]["processor"]
        yield words.other_machine.format(processor=processor), *_tokens(words, step["sides"], "processes")
    if run := _results("nanogpt_cpu"):
        ours, torch = (run["sides"][side] for side in ("ours", "torch"))
        seconds = (words.seconds.format(f"{side['seconds']['median']:.1f}") for side in (ours, torch))
        yield words.whole_run.format(steps=f"{run['steps']:,}"), *seconds, _ratio(ours["speed_relative_to_torch"])
    if text := _first(_results("generate"), text=TEXT):
        ours, torch = (text["sides"][side] for side in ("ours", "torch cache"))
        speeds = (words.tokens_per_second.format(f"{side['tokens_per_second']['median']:,.0f}") for side in (ours, torch))
        yield words.generation, *speeds, _ratio(ours["speed_relative_to_torch_cache"])
    for precision in PRECISIONS:
        if step := _first(_results("train_step_gpu"), configuration="gpt2", precision=precision):
            yield words.gpu_step.format(precision=precision), *_tokens(words, step["sides"])


def _tokens(words: Words, sides: dict[str, Any], own: str = "ours") -> tuple[str, str, str]:
    """The speed of both sides, and their ratio; also the ratio to compiled torch if it was measured."""
    ours = sides[own]
    speeds = [words.tokens_per_second.format(f"{sides[side]['tokens_per_second']:,.0f}") for side in (own, "torch")]
    ratio = _ratio(ours["speed_relative_to_torch"])
    if "torch compiled" in sides:
        compiled = ours["tokens_per_second"] / sides["torch compiled"]["tokens_per_second"]
        ratio = words.compiled.format(ratio=ratio, compiled=f"{compiled:.2f}")
    return speeds[0], speeds[1], ratio


def _ratio(spread: dict[str, float]) -> str:
    return f"**{spread['median']:.2f}**"


def _machines(words: Words) -> str:
    sentences = []
    if cpu := _content("train_step").get("machine"):
        sentences.append(words.cpu.format(**cpu))
    if gpu := _content("train_step_gpu").get("machine"):
        sentences.append(words.gpu.format(gpu=gpu["gpu"].partition(",")[0]))  # without the driver
    return " ".join(sentences)


def _results(name: str) -> Any:
    return _content(name).get("results")


def _content(name: str) -> dict[str, Any]:
    path = common.RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _first(results: list[dict[str, Any]] | None, **wanted: str) -> dict[str, Any] | None:
    """The result that has all of ``wanted``."""
    return next((one for one in results or [] if all(one[name] == value for name, value in wanted.items())), None)
