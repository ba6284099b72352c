"""Training: the loop, and what is around it.

trainer             the loop: evaluate, save, make a step, log
stepper             how a step is made: on the CPU, on a GPU, or as a CUDA graph
team                which team shares the batches on a CPU: threads or processes
run, pretraining    a run in its folder; the kind that begins with random weights (the other is `gpt.finetuning.run`)
run_folder          the folder of a run, and its lock
resume              a trainer as the files of a checkpoint, and back; the checks of --resume
rows, fingerprint   batches of examples of different lengths; whether the data is still the same
scoring             the log-probabilities of given tokens, many rows at a time
evaluation          the results of evaluations, and a bigram model by counting to compare with
metrics             metrics.jsonl, TensorBoard's events, the norms of the gradient
memory, speed       the memory of a step, estimated; the speed, measured
stopping, diagnosis     Ctrl-C and time limits; the op that produced the first nan
progress, report    the bar, and the tables before and after a run
"""
