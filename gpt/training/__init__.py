"""The loop, and what is around it.

trainer             the loop: batch, forward, backward, clip, step; captured: the same as a CUDA graph
run, pretraining    a run as a whole: begun, resumed, saved; the kind that begins with fresh weights (the other is `gpt.finetuning.run`)
run_folder, lock    where it is kept, by one program at a time
training_state, snapshot, checkpoints      all that a run is; a folder that is whole or not there; the last few and the best
fingerprint                                whether a text is the one that a run began with
rows                batches of examples of their own, padded
estimate, speed, gradient_norms            what it will take, what it reaches, what flows back
stopping, diagnosis                        Ctrl-C and time limits; where the first nan came from
progress, report, counting, tensorboard    what is told
"""
