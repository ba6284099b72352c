"""Which decoder a model gets: by its family, and by where it is."""

from __future__ import annotations

from gpt.generation.batch_decoder import BatchDecoder
from gpt.generation.decoder import Decoder, supports
from gpt.generation.llama_decoder import BatchLlamaDecoder, LlamaDecoder
from gpt.generation.recorded_decoder import BatchRecordedDecoder, RecordedDecoder
from gpt.model import LanguageModel


def make_decoder(model: LanguageModel) -> Decoder | None:
    """A decoder with a cache for ``model``; None for a model with layers that no decoder knows."""
    for kind in (RecordedDecoder, LlamaDecoder):
        if kind.knows(model):
            return kind(model)
    return Decoder(model) if supports(model) else None


def make_batch_decoder(model: LanguageModel, slots: int) -> BatchDecoder | None:
    """The same for many texts at once, with a slot for each."""
    for kind in (BatchRecordedDecoder, BatchLlamaDecoder):
        if kind.knows(model):
            return kind(model, slots)
    return BatchDecoder(model, slots) if supports(model) else None
