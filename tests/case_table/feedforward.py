from tests.cases import Case, normal


def ours(approximate):
    return lambda t, x, *parameters: t.nn.functional.feedforward(x, *parameters, approximate=approximate)


def twin(approximate):
    def call(t, x, hidden_weight, hidden_bias, weight, bias):
        F = t.nn.functional
        return F.linear(F.gelu(F.linear(x, hidden_weight, hidden_bias), approximate=approximate), weight, bias)

    return call


def case(name, approximate, *shape, hidden=16, out=6):
    width = shape[-1]
    arrays = [normal(*shape), normal(hidden, width), normal(hidden), normal(out, hidden), normal(out)]
    return Case(f"feedforward-{name}", ours(approximate), arrays, torch_call=twin(approximate))


CASES = [
    case("by-tanh", "tanh", 2, 3, 8),
    case("exact", "none", 2, 3, 8),
    case("one-row", "tanh", 1, 8),
    case("odd-widths", "tanh", 4, 5, hidden=7, out=3),
]
