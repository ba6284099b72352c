"""Pictures, for `gpt.plot` and at the end of a run.

figure              a figure as a file
curves              loss, learning rate and gradient of runs
attention_maps      attention weights for a prompt, in every head
activation_curves   the activation functions and their derivatives
"""
