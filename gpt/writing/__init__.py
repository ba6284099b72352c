"""One token at a time, for `gpt.inference`.

decoder             the model for one new row, with keys and values remembered; folded, activate: what makes it fast
sampling            from scores to a choice, and whether it is certain
pieces              from tokens to text that never ends inside a character
template            how a conversation is written down
"""
