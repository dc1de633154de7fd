"""Scripts in processes of their own, and on several ranks as torchrun starts them, without the price of imports."""

from __future__ import annotations

import gc
import multiprocessing
import runpy
import signal
import sys
import traceback
import uuid
from multiprocessing.connection import Connection
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

LAST_RESORT_SECONDS = 1800
_PRELOADED = ["tests.preloaded"]
_PATIENT = ("read_timeout", "join_timeout", "close_timeout", "heartbeat_timeout", "keep_alive_max_attempt")
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def run_ranks(script: Path | str, *arguments: object, num_ranks: int = 2, max_restarts: int = 0) -> None:
    """Runs a script, a file or its source, on every rank with these arguments; raises if one fails for good.

    Ranks are forks of a server that has imported the libraries and runs nothing else: importing takes a rank seconds.
    conftest.py has one process run all files that import this, so that there is one server.
    """
    multiprocessing.set_forkserver_preload(_PRELOADED)
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


def run_alone(script: Path | str, *arguments: object) -> None:
    """Runs a script in one fork of that server; raises what it raises, as text."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    failures, failure = context.Pipe(duplex=False)
    process = context.Process(target=_run_alone, args=(script, list(map(str, arguments)), failure))
    process.start()
    failure.close()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(failures.recv() if failures.poll() else f"exit status {process.exitcode}")


def _run_alone(script: Path | str, arguments: list[str], failure: Connection) -> None:
    try:
        _run(script, arguments)
    except BaseException:
        failure.send(traceback.format_exc())
        raise


def _run(script: Path | str, arguments: list[str]) -> None:
    gc.freeze()  # a collection would walk what was imported, and copy its pages
    sys.argv = ["rank", *arguments]
    if isinstance(script, Path):
        runpy.run_path(str(script), run_name="__main__")
    else:
        exec(script, {"__name__": "__main__"})
