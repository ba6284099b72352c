"""The exercises: one solved page each, in the order in which they are written.

A file has two halves. The upper one is the page: what it computes, the shapes, numbers to check by hand, forward, and backward. `python -m
study write` copies it without what stands below WRITE_FROM_HERE, so the page of the student and the solution cannot drift apart. The lower
half, from FOR_THE_CHECKER on, is not copied:

    HINTS       three; the last one nearly says it
    cases       inputs for central differences
    LIKELY      what a mistake looks like -> a backward with that mistake; a wrong gradient that equals its gradient is named by it
    check       in the place of cases, where there is no gradient to compare with: says what is wrong, and what that looks like

tests/test_study_exercises.py holds each page to central differences and to the page of the book, bit for bit where training uses it.
"""

WRITE_FROM_HERE = "    # --- write from here ---\n"
FOR_THE_CHECKER = "# --- for the checker ---\n"

GROUPS = {
    "first steps": ("square", "multiply", "add_bias", "broadcast", "add"),
    "number by number": ("exp", "log", "relu", "sigmoid", "tanh", "gelu"),
    "rows and matrices": ("sum", "mean", "max", "matmul", "linear", "embedding"),
    "probabilities, losses": ("mse", "softmax", "log_softmax", "cross_entropy", "linear_cross_entropy"),
    "norms, dropout": ("layernorm", "rmsnorm", "dropout"),
    "attention": ("masked_softmax", "attention", "heads"),
    "the machine": ("tape", "clip", "adamw", "newton_schulz"),
}
NAMES = tuple(name for group in GROUPS.values() for name in group)
