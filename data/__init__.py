"""From text to batches of token ids. This package does not use tensors or models.

    sources     documents out of files, folders and archives, and corpora with a name
    tokenizer   text to numbers and back
    prepare     a source in, a folder of tokens out: ``python -m data.prepare SOURCE --out DIR``
    prepared    open such a folder, or one of nanoGPT's
    dataset     open any source that a user wants to train on
    loader      the (B, T) arrays a model trains on
    inspect     what is in a prepared folder: ``python -m data.inspect DIR``

Every error in a user's data is a `data.errors.DataError` with a message of one sentence. Text files and characters need only
NumPy; 7z archives and BPE need the extra ``[data]``, GPT-2's tokenizer ``[gpt2]``.
"""
