"""The book: every op as two plain functions, one concept a page.

Read it in this order. Each page stands on its own.

    layernorm       a good first page: one formula, three gradients, one of them surprising
    arithmetic      + - · / and powers; what broadcasting does to a gradient
    elementary      exp, log, roots, sine and cosine
    comparison      maximum, minimum, clamp: ops that select
    masking         why a mask selects, and does not multiply
    reduction       sum, mean, variance, logsumexp
    summation       how to add many numbers in float32 with few roundings
    extremum        the largest and the smallest element
    shape           reshaping moves elements, so its gradient moves them back
    indexing        the gradient goes back to the positions that were read, and adds up where one was read twice
    linear          matrix products: why each gradient has the transpose that it has
    activation      relu, gelu, silu, sigmoid, tanh
    softmax         scores to probabilities; its Jacobian is a diagonal minus a matrix of rank one
    embedding       a table of vectors, and tokens that occur more than once
    dropout         the same mask in forward and in backward
    rmsnorm         layer normalisation without the mean
    cross_entropy   why the gradient of softmax, logarithm and loss together is p - y
    attention       the pages above combined
    self_attention  attention as a GPT uses it, all heads in one array
    feedforward    the other half of a block: two linear layers with gelu between them

A GPT needs no more. The models after it (`gpt/llama.py`) replace three of its parts:

    rotary          positions as rotations, and the rotation back
    swiglu          an activation with a gate
    grouped_queries a key that several queries share collects their gradients
    rotary_self_attention   rotary positions and grouped queries, all heads in one array

Programs written for torch also find

    rounding, logarithm, error_function, norm, cumprod      more functions of numbers
    rectifier       relu's relatives: leaky relu, elu, softplus
    batchnorm       layernorm with batch and channels exchanged
    losses, binary_cross_entropy, kl_div                    other answers to "how far off?"
    sorting, scatter, diagonal, padding                     moving numbers, and putting them back

Importing this package puts the operators and methods on `Tensor` (see `methods`).
"""
