"""Scripts on several ranks as torchrun starts them, without its price: a process of its own and the imports of each."""

from __future__ import annotations

import gc
import multiprocessing
import runpy
import signal
import sys
import uuid
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

LAST_RESORT_SECONDS = 1800
_PATIENT = ("read_timeout", "join_timeout", "close_timeout", "heartbeat_timeout", "keep_alive_max_attempt")
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def run_ranks(script: Path | str, *arguments: object, num_ranks: int = 2, max_restarts: int = 0) -> None:
    """Runs a script, a file or its source, on every rank with these arguments; raises if one fails for good.

    Ranks are forks of a server that has imported the libraries and runs nothing else: importing takes a rank seconds.
    conftest.py has one process run all files that call this, so that there is one server.
    """
    multiprocessing.set_forkserver_preload(["tests.preloaded"])
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        max_restarts=max_restarts,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        rdzv_configs=dict.fromkeys(_PATIENT, LAST_RESORT_SECONDS),
        start_method="forkserver",
    )
    handlers = {number: signal.getsignal(number) for number in _HANDLED}
    try:
        elastic_launch(config, _run)(script, list(map(str, arguments)))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _run(script: Path | str, arguments: list[str]) -> None:
    gc.freeze()  # a collection would walk what was imported, and copy its pages
    sys.argv = ["rank", *arguments]
    if isinstance(script, Path):
        runpy.run_path(str(script), run_name="__main__")
    else:
        exec(script, {"__name__": "__main__"})
