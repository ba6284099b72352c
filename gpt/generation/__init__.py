"""Text from a trained model, one token at a time.

stream              from a prompt to text
sampling            from scores to a choice, and whether it is certain
decoder             the model for one new row, with keys and values remembered; folding, activation: what makes it fast
detokenizer         from tokens to text that never ends inside a character
conversation, chat_template      what was said so far; how it is written down
"""
