"""distributed: the helpers on one process, and the same under torchrun with a restart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from learn_rank.distributed import (
    gather_equal,
    new_group,
    num_ranks,
    on_main,
    process_group,
    sum_over_ranks,
    thread_advice,
)
from learn_rank.errors import InputError
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def refuse() -> int:
    raise InputError("no such file")


def test_helpers_work_without_any_group() -> None:
    assert num_ranks() == 1
    assert on_main(lambda: 7) == 7
    assert sum_over_ranks(torch.tensor([2.0])).item() == 2
    (only,) = gather_equal(np.ones(3, np.float32), CPU)
    assert only.tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="no such file"):
        on_main(refuse)


def test_a_group_of_one_is_left_again() -> None:
    for _ in range(2):
        with process_group() as process:
            assert dist.is_initialized()
            assert (process.rank, process.world_size, process.is_main) == (0, 1, True)
        assert not dist.is_initialized()


def test_a_group_made_by_the_caller_is_used_and_kept() -> None:
    with process_group():
        with process_group() as inner:
            assert inner.world_size == 1
        assert dist.is_initialized()


def test_helpers_take_a_group_of_their_own_on_one_process() -> None:
    with process_group():
        group = new_group()
        assert group is not dist.group.WORLD
        assert on_main(lambda: 7, group) == 7
        assert sum_over_ranks(torch.tensor([2.0]), group).item() == 2


def test_thread_advice_names_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert thread_advice(1, CPU) is None
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert "OMP_WAIT_POLICY=PASSIVE" in thread_advice(1, CPU)
    assert "OMP_NUM_THREADS=1" in thread_advice(10_000, CPU)
    assert thread_advice(2, torch.device("cuda")) is None


_RANK = """
import json, os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, torch
from learn_rank.distributed import gather_equal, gather_with_gradient, new_group, num_ranks, on_main
from learn_rank.distributed import process_group, sum_gradients, sum_over_ranks
from learn_rank.errors import InputError

def refuse():
    raise InputError("no such file")

def divide():
    return 1 / 0

with process_group() as process:
    total = sum_over_ranks(torch.tensor([process.rank + 1.0])).item()
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and process.rank == 1:
        os._exit(1)
    found = {"total": total, "from_main": on_main(lambda: ["rank", process.rank])}
    group = new_group()
    with ThreadPoolExecutor(1) as thread:  # while both threads of a rank talk to the other rank's, nothing is mixed up
        others = thread.submit(lambda: [on_main(lambda: i, group) for i in range(300)])
        found["sums"] = [sum_over_ranks(torch.tensor([i])).item() for i in range(300)]
        found["others"] = others.result()
    found["num_ranks"] = num_ranks()
    parts = gather_equal(np.full(2, process.rank, np.float32), process.device)
    found["parts"] = [part.tolist() for part in parts]
    mine = torch.nn.Parameter(torch.tensor([process.rank + 1.0]))
    unused = torch.nn.Parameter(torch.zeros(1))
    gathered = gather_with_gradient(mine)  # [1, 2]; rank r's loss is (r + 1) (1 x + 10 y)
    ((process.rank + 1) * (gathered * torch.tensor([1.0, 10.0])).sum()).backward()
    found["gathered"], found["gradient"] = gathered.tolist(), mine.grad.item()
    sum_gradients([mine, unused])
    found["summed"] = [mine.grad.item(), unused.grad.item()]
    for name, function in {"input": refuse, "bug": divide}.items():
        try:
            on_main(function)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    found["attempt"] = os.environ["TORCHELASTIC_RESTART_COUNT"]
    (Path(sys.argv[1]) / f"{process.rank}.json").write_text(json.dumps(found))
"""


def test_torchrun_starts_two_ranks(tmp_path: Path) -> None:
    """The command itself, once: other tests have its launcher without its imports."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "from learn_rank.distributed import process_group, sum_over_ranks\n"
        "with process_group() as process:\n"
        "    total = sum_over_ranks(torch.tensor([process.rank + 1.0])).item()\n"
        "    open(f'{sys.argv[1]}/{process.rank}', 'w').write(str(total))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*torchrun, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["3.0", "3.0"]


def test_two_ranks_agree_and_join_again_after_a_restart(tmp_path: Path) -> None:
    run_ranks(_RANK, tmp_path, max_restarts=1)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for actual in ranks:
        assert actual["attempt"] == "1"
        assert actual["total"] == 3
        assert actual["from_main"] == ["rank", 0]
        assert actual["sums"] == list(range(0, 600, 2))
        assert actual["others"] == list(range(300))
        assert actual["num_ranks"] == 2
        assert actual["parts"] == [[0, 0], [1, 1]]
        assert actual["gathered"] == [1, 2]
        assert actual["summed"] == [33, 0]
        assert actual["input"] == "InputError: no such file"
    assert [actual["gradient"] for actual in ranks] == [3, 30]  # what both ranks' losses say of it
    assert ranks[0]["bug"] == "ZeroDivisionError: division by zero"
    assert "rank 0 failed: ZeroDivisionError" in ranks[1]["bug"]
