"""Predictions in eval mode and off the tape, whatever mode the model is in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorlite as tl
from gpt.model import LanguageModel


@contextlib.contextmanager
def inference_mode(model: LanguageModel) -> Iterator[None]:
    """Eval mode, off the tape; afterwards every module is in its former mode."""
    in_training = [module for module in model.modules() if module.training]
    with tl.no_grad():
        for module in in_training:
            module.training = False
        try:
            yield
        finally:
            for module in in_training:
                module.training = True
