"""Learning rate by step: a pure function of the finished steps, so a resumed run needs no state for it."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, *, schedule: str, warmup_steps: int, num_steps: int) -> float:
    """Factor of the learning rates in the step that follows `step` finished ones, of num_steps planned.

    With w = warmup_steps and n = num_steps, linear warm-up: (step + 1) / (w + 1) for step < w. After it, with
    s = (step - w) / (n - w): 1 (constant), 1 - s (linear) or (1 + cos(pi s)) / 2 (cosine), which reach 0 after the last
    step. On another number of ranks there may be one step more than planned, which gets 0.

    >>> [learning_rate_factor(step, schedule="linear", warmup_steps=1, num_steps=5) for step in range(6)]
    [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    share = min((step - warmup_steps) / max(num_steps - warmup_steps, 1), 1.0)
    return 1 - share if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))
