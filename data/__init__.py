"""From text to batches of token ids. This package knows nothing of tensors or models.

    sources     documents out of files, folders and archives, and corpora with a name
    tokenizer   text to numbers and back
    prepare     a source in, a folder of tokens out: ``python -m data.prepare SOURCE --out DIR``
    prepared    such a folder, or one of nanoGPT's, opened
    dataset     whatever a user wants to train on
    loader      the (B, T) arrays a model trains on
    inspect     what is in a prepared folder: ``python -m data.inspect DIR``

Whatever is wrong with what a user hands in is a `data.errors.DataError`, and its message one sentence. Text files and characters need
NumPy alone; 7z archives and BPE need the extra ``[data]``, GPT-2's tokenizer ``[gpt2]``.
"""
