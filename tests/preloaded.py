"""What the server of ranks.py imports once, for all its forks."""

from __future__ import annotations

import importlib
from contextlib import suppress

from numba.core.registry import cpu_target

for name in (
    "sklearn.metrics",
    "torch._inductor.compile_fx",
    "transformers.models.llama.modeling_llama",
    "learn_rank.alignment.train",
    "learn_rank.cli.pipeline",
    "learn_rank.content.extract",
    "learn_rank.ranker.training.train",
    "tests.integrations.cases_torchrec",
):
    with suppress(ImportError):
        importlib.import_module(name)
cpu_target.typing_context.refresh()  # as numba does before it first compiles or loads a function
cpu_target.target_context.refresh()
