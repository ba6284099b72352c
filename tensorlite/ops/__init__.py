"""The book: every op as two plain functions, one concept a page.

Read it in this order. Each page stands on its own.

    layernorm       a good first page: one formula, three gradients, one of them surprising
    arithmetic      + - · / and powers; what broadcasting does to a gradient
    elementary      exp, log, roots, sine and cosine
    comparison      maximum, minimum, clamp: ops that choose
    masking         why a mask selects, and does not multiply
    reduction       sum, mean, variance, logsumexp
    summation       adding many numbers in float32, so that the roundings stay few
    extremum        the largest and the smallest
    shape           reshaping moves numbers, so its gradient moves them back
    indexing        reading is choosing; its gradient puts back, and adds where one value was read twice
    linear          matrix products: why the transposes stand where they stand
    activation      relu, gelu, silu, sigmoid, tanh
    softmax         and its Jacobian of rank one
    embedding       a table of vectors, and tokens that occur more than once
    dropout         the same mask forward and backward
    rmsnorm         layer normalisation without the mean
    cross_entropy   why the gradient of all that is just p - y
    attention       the pages above, put together
    self_attention  attention as a GPT uses it, all heads in one array

Importing this package puts the operators and methods on `Tensor` (see `methods`).
"""
