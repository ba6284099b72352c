"""A GPT on tensorlite: the model, how it is trained, and how it writes. Begin with `model`, then `training.trainer`.

config, model              what a model looks like; the model itself
checkpoint, pretrained     a model in a folder, and how to get it back; folders of GPT-2's published weights
seal                       a checksum that travels with the weights
inference                  from a prompt to text

train, finetune, generate, chat, plot      python -m gpt.train, and so on; python -m gpt --mode train is the same
training/                  the loop, and a run as a whole: begun, stopped, resumed, saved
finetuning/                what a trained model can be taught next: another text, answers, classes; all of it, a part, or LoRA
writing/                   one token at a time: keys and values remembered, a choice made, bytes put together to characters
plots/                     curves and maps

options, arguments         the command line; errors: one sentence for a user's mistake, a traceback for ours; sizes: bytes in words
"""
