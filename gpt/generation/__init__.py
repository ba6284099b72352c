"""Text from a trained model, one token at a time.

stream              from a prompt to text
sampling            from logits to a token, and whether rounding could change it
decoder             the model for one new token, with a cache of keys and values; folding, activation: what makes it fast
batch_decoder       the same for many texts at once, with a slot for each
llama_decoder       both for the family of `gpt.llama`
recorded_decoder    both on a GPU: a token is the launch of a recorded step
decoders            which of them a model gets
detokenizer         from tokens to text that never ends inside a character
conversation, chat_template      the messages so far; their form as one text
"""
