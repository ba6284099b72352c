"""Text to numbers and back. A model knows no letters, only ids from 0 to vocab_size - 1.

    char         one id for each character
    bpe          byte pair encoding, learnt from a text of one's own; any tokenizer.json of Hugging Face's
    words        how it cuts a text into words, and a memory for their ids
    gpt2         GPT-2's, as it was published
    ids          none at all: numbers stay numbers
    files        which of them a file holds
    base         what is expected of each

Files hold JSON, which is text and numbers and no code. `char` needs NumPy alone; the others import their libraries when they are used.
"""

from data.tokenizer.base import END_OF_TEXT, MissingExtraError, Tokenizer, TokenizerError, token_dtype
from data.tokenizer.bpe import BpeTokenizer, HuggingFaceTokenizer
from data.tokenizer.byte_level import ByteLevelTokenizer
from data.tokenizer.char import CharTokenizer, UnknownCharacterError
from data.tokenizer.files import load_tokenizer, named_tokenizer, tokenizer_from_dict
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
]
