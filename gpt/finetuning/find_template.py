"""The form of a model's conversations, wherever it is kept: in its GGUF file, beside its weights, or with the model that it corrects."""

from __future__ import annotations

import os

from data.paths import expand_path
from gpt.checkpoints.adapter import base_of_adapter
from gpt.checkpoints.gguf_file import is_gguf
from gpt.checkpoints.gguf_model import chat_template, path_of_gguf
from gpt.generation.chat_template import TEMPLATE, ChatTemplate, load_template
from gpt.generation.jinja_template import JinjaTemplate, load_jinja_template


def find_template(checkpoint: str | os.PathLike[str]) -> ChatTemplate | JinjaTemplate | None:
    """The template that belongs to a model, or that a file of its own holds; None for a model that has none, as a base model.

    Raises:
        TemplateError, CheckpointError: for one that cannot be used.
    """
    if found := chat_template(checkpoint):
        return JinjaTemplate(found.source, found.special_tokens, **found.names)
    path = path_of_gguf(checkpoint)
    if is_gguf(path):
        return None
    folder = expand_path(path)
    if folder.is_dir() and not (folder / TEMPLATE).exists() and (base := base_of_adapter(folder)):
        return find_template(base)
    return load_jinja_template(path) or load_template(path)
