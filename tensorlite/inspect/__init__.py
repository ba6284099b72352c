"""Look at what ran: a tensor in one line, the graph behind it, and its backward pass one step at a time.

    from tensorlite import inspect

    inspect.summary(x)                       # 'float32 (3, 4)  -1.92 … 2.13  mean 0.07 ± 1.01  ▁▃▇█▅▂'
    print(inspect.draw(loss))                # the graph as a tree

    with inspect.trace(model):               # note which module, and which line, ran each op
        loss = model(x, y)[1]
    walk = inspect.Walk(loss)
    step = walk.forward()                    # one op's backward: the gradients it got, what was saved, the gradients it returns
    walk.back()                              # the step before; nothing is computed again
    walk.until("h.0.attn")                   # on to a module, an op, a parameter, or a condition

`tensorlite.draw` and `tensorlite.walk` are the same functions under shorter names.
"""

from tensorlite.inspect.comparison import Comparison, compare
from tensorlite.inspect.draw import Drawing, draw
from tensorlite.inspect.summary import summary
from tensorlite.inspect.trace import Call, Site, call_of, trace
from tensorlite.inspect.walk import Delivery, Step, Walk, walk

__all__ = [
    "Call", "Comparison", "Delivery", "Drawing", "Site", "Step", "Walk", "call_of", "compare", "draw", "summary", "trace", "walk",
]  # fmt: skip
