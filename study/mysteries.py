"""Ten mysteries: a page with one planted fault, to be found with central differences.

Each is one line of a solved page exchanged. They are the mistakes of docs/mistakes.md, and one more.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mystery:
    """A fault in a page.

    Attributes:
        page: the exercise whose page it is.
        story: what was seen, before anybody looked at gradients.
        right, wrong: the line, and what stands in its place.
        hints: three, for who has read what the differences say.
    """

    page: str
    story: str
    right: str
    wrong: str
    hints: tuple[str, str, str]


MYSTERIES = {
    "mystery_1": Mystery(
        "linear",
        "The model trains, but the biases hardly move, and the larger the batch, the less.",
        "    dbias = dy_rows.sum(axis=0)",
        "    dbias = dy_rows.mean(axis=0)",
        (
            "The differences name the gradient that is wrong, and a factor. The factor is one over the length of an axis: which axis?",
            "bias is used once in every row. What becomes of the gradients of many uses?",
            "The line of dbias: gradients of shared numbers add up, they are not averaged.",
        ),
    ),
    "mystery_2": Mystery(
        "embedding",
        "Rare words are learnt well. Frequent words are not.",
        "    np.add.at(dweight, ids.reshape(-1), dy.reshape(ids.size, shape[1]))",
        "    dweight[ids] += dy",
        (
            "Call embedding_backward with the numbers that the page gives to check by hand, ids = [1, 1]. Is dweight[1] 7?",
            "Try it: a = np.zeros(3); a[[1, 1]] += 1; print(a). Is a[1] 2?",
            "The line dweight[ids] += dy reads, adds and writes back: of a repeated token one gradient is left. np.add.at adds all.",
        ),
    ),
    "mystery_3": Mystery(
        "softmax",
        "Attention learns, but slowly, and all scores drift upwards together.",
        "    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))",
        "    return y * dy",
        (
            "If all scores of a row rise by the same amount, y stays. So each row of dx must add up to 0. Does it?",
            "What one probability gains the others lose. Where is that loss in the last line?",
            "The last line: each score is pushed by its own dy less the row's average, weighted with y: y · (dy - Σ dy · y).",
        ),
    ),
    "mystery_4": Mystery(
        "layernorm",
        "A deep model trains a little worse than the same model elsewhere, and nobody knows why.",
        "    dx = inverse_std * (g - g.mean(axis=-1, keepdims=True) - x_hat * (g * x_hat).mean(axis=-1, keepdims=True))",
        "    dx = inverse_std * (g - x_hat * (g * x_hat).mean(axis=-1, keepdims=True))",
        (
            "The difference between the two gradients is the same in a whole row. What is the same for all numbers of a row?",
            "Layer norm subtracts the mean, and every number of the row is in that mean. Where is that in dx?",
            "The line of dx: the second of three terms is missing, - mean(g).",
        ),
    ),
    "mystery_5": Mystery(
        "attention",
        "With larger heads, the keys learn faster and faster, until training diverges.",
        "    return dS @ k * scale, dS.swapaxes(-1, -2) @ q * scale, dv",
        "    return dS @ k * scale, dS.swapaxes(-1, -2) @ q, dv",
        (
            "One of three gradients is wrong, by a factor that is the root of an axis' length. Which axis is it, T or D?",
            "S = q @ kᵀ / √D. How often does 1/√D stand in S, and how often in dq and in dk?",
            "The last line: dq has the factor scale, and dk lacks it.",
        ),
    ),
    "mystery_6": Mystery(
        "cross_entropy",
        "Somebody doubled the batch size, and now training diverges.",
        "    return dx * (dy / N), None",
        "    return dx * dy, None",
        (
            "The gradient is too large by a whole number. Which length is that?",
            "Forward ends in a mean over N rows. What does a mean do to the gradient?",
            "The last line: each row's gradient is divided by N.",
        ),
    ),
    "mystery_7": Mystery(
        "gelu",
        "Units whose input is a little below 0 never recover.",
        "    return dy * (cdf + x * gaussian_pdf(x))",
        "    return dy * cdf",
        (
            "Where are the two gradients nearly equal: where |x| is large, or where it is small?",
            "y = x · Φ(x) is a product, and both factors have x in them. How many terms has the product rule?",
            "The last line: the term in which x moves the gate is missing, x · φ(x).",
        ),
    ),
    "mystery_8": Mystery(
        "tape",
        "A plain network trains well. With residual connections it does not train at all.",
        "                arrived[parent] = arrived[parent] + dx",
        "                arrived[parent] = dx",
        (
            "In which of the checker's graphs does it go wrong first? What do they have that the ones before did not?",
            "Where two paths meet, two gradients arrive at one node. What becomes of the first?",
            "The line arrived[parent] = dx below `if parent in arrived` replaces what has arrived. Gradients add up.",
        ),
    ),
    "mystery_9": Mystery(
        "adamw",
        "The first steps of every run are much too short. After a hundred steps all is well.",
        "    p -= (lr / (1 - beta1**t)) * m / size",
        "    p -= lr * m / size",
        (
            "m and v are right, and p is not. So the last line is left.",
            "m begins at 0. After one step it is (1 - β₁) · g, a tenth of the gradient. What makes up for that?",
            "The last line: v is corrected by 1 - β₂ᵗ, and m is not by 1 - β₁ᵗ. Divide lr by it.",
        ),
    ),
    "mystery_10": Mystery(
        "heads",
        "All shapes are right. With one head the model trains, with four it learns next to nothing.",
        "    return dy.swapaxes(1, 2).reshape(B, T, H * D)",
        "    return dy.reshape(B, T, H * D)",
        (
            "Nothing is lost and nothing is added: all numbers of the right gradient are there. Where are they?",
            "Forward did two things, reshape and swapaxes. Count the steps of backward.",
            "The last line: a reshape alone reads the numbers in the order (B, H, T, D). The axes have to be swapped back first.",
        ),
    ),
}
