"""The loop, and what is around it.

trainer             the loop: batch, forward, backward, clip, step; stepper: the same as a CUDA graph
run, pretraining    a run as a whole: begun, resumed, saved; the kind that begins with fresh weights (the other is `gpt.finetuning.run`)
run_folder          where it is kept, by one program at a time
rows, fingerprint   batches of examples of their own, padded; whether a text is the one that a run began with
evaluation          what counting gives, to compare with
metrics             what is logged: metrics.jsonl, TensorBoard's events, the gradient's norms
memory, speed       what it will take, and what it reaches
stopping, diagnosis     Ctrl-C and time limits; where the first nan came from
progress, report    what is told
"""
