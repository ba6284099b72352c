"""Tokenizers: text to ids and back. A model only works with ids, from 0 to vocab_size - 1.

    char         one id for each character
    bpe          byte pair encoding, trained on a text; any tokenizer.json of Hugging Face's
    words        how BPE splits a text into words, and a cache of their ids
    gpt2         GPT-2's tokenizer, as it was published
    ids          no tokenizer: ids are written as numbers
    files        find the tokenizer in a file
    base         the protocol of all tokenizers

Files hold JSON, which cannot contain code. `char` needs only NumPy; the others import their libraries when they are used.
"""

from data.tokenizer.base import END_OF_TEXT, MissingExtraError, Tokenizer, TokenizerError, token_dtype
from data.tokenizer.bpe import BpeTokenizer, HuggingFaceTokenizer
from data.tokenizer.byte_level import ByteLevelTokenizer
from data.tokenizer.char import CharTokenizer, UnknownCharacterError
from data.tokenizer.files import load_tokenizer, named_tokenizer, tokenizer_from_dict, tokenizer_in_folder
from data.tokenizer.gpt2 import Gpt2Tokenizer
from data.tokenizer.ids import IdsTokenizer

__all__ = [
    "END_OF_TEXT",
    "BpeTokenizer",
    "ByteLevelTokenizer",
    "CharTokenizer",
    "Gpt2Tokenizer",
    "HuggingFaceTokenizer",
    "IdsTokenizer",
    "MissingExtraError",
    "Tokenizer",
    "TokenizerError",
    "UnknownCharacterError",
    "load_tokenizer",
    "named_tokenizer",
    "token_dtype",
    "tokenizer_from_dict",
    "tokenizer_in_folder",
]
