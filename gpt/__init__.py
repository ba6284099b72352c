"""A GPT on tensorlite: the model, how it is trained, and how it writes.

    config, model       what a model looks like; the model itself
    trainer, train      the loop; python -m gpt.train
    checkpoint          a model in a file, and how to get it back
    run, pretraining, finetuning                a run as a whole: begun, resumed, saved; and its two kinds
    training_state, snapshot, checkpoints       all that a run is; a folder that is whole or not there; the last few and the best
    sampling            from scores to the next token
    inference           from a prompt to text
    generate            python -m gpt.generate
    finetune            python -m gpt.finetune; tasks: what a model can be taught next; instructions, template, classify, lora, freezing
    plot                python -m gpt.plot; curves, attention_maps, activation_curves
    errors              one sentence for a user's mistake, a traceback for ours

The rest serves these: options (the command line), run_folder, lock, stopping (Ctrl-C), estimate (memory), diagnosis (nan), records and rows
(examples from files, as batches), report, speed (share of the machine's peak), tensorboard, figure.
"""
