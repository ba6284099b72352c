"""A GPT on tensorlite: the model, how it is trained, and how it writes.

    config, model       what a model looks like; the model itself
    trainer, train      the loop; python -m gpt.train
    checkpoint          what a run leaves behind, and how to get it back
    sampling            from scores to the next token
    inference           from a prompt to text
    generate            python -m gpt.generate
    errors              one sentence for a user's mistake, a traceback for ours

The rest serves these: options (the command line), run_folder, files (whole or not at all), stopping (Ctrl-C), plot.
"""
