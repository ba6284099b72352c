"""From text to batches of token ids. NumPy only: this package knows nothing of tensors or models.

    corpus      a file, or the text that every Python brings along, as one clean string
    tokenizer   characters to numbers and back
    loader      random windows of those numbers, as the (B, T) arrays a model trains on

Whatever is wrong with what a user hands in is a `data.errors.DataError`, and its message one sentence.
"""
