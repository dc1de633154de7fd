"""The adaptor works where nothing but torch is installed, and its import costs what torch's costs."""

from __future__ import annotations

import json
import subprocess
import sys

_ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import torch
from learn_rank.adaptor import LearnAdaptor, LearnFeatures, VectorTable, attach, cvr_loss

adaptor = LearnAdaptor(4, 4)
output = adaptor(torch.randn(6, 4), torch.randn(6, 4))
cvr_loss(output.cvr_logit, torch.ones(6)).backward()
features = LearnFeatures(VectorTable(torch.randn(3, 4)), VectorTable(torch.randn(2, 4)), adaptor)
learned = features(torch.arange(6), [0, 1, 0, 1, 0, 7])
learned.cvr_loss(torch.ones(6)).backward()
host = torch.nn.Sequential(torch.nn.Linear(2, 1))
attach(host, features, inputs=lambda x: (torch.arange(6), torch.arange(6)))
host(torch.randn(6, 2)).sum().backward()
print(learned.features().shape[1], *sorted(set(sys.modules) & set({blocked})))
"""
_HEAVY = [
    "numpy",
    "pyarrow",
    "numba",
    "llvmlite",
    "xxhash",
    "duckdb",
    "pandas",
    "sklearn",
    "scipy",
    "tqdm",
    "hydra",
    "omegaconf",
    "jinja2",
    "torchrec",
    "fbgemm_gpu",
    "transformers",
    "tensorboard",
]
_LOADED = """
import json, sys
import torch
before = set(sys.modules)
from learn_rank.adaptor import LearnAdaptor
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_adaptor_features_and_attach_work_with_torch_alone() -> None:
    assert run(_ALONE.format(blocked=_HEAVY)) == "72"


def test_importing_the_adaptor_loads_its_own_few_files_on_top_of_torch() -> None:
    loaded = json.loads(run(_LOADED))
    assert "learn_rank.adaptor.fusion" in loaded
    assert [name for name in loaded if not name.startswith("learn_rank")] == []  # torch's compiler alone takes a second
    assert len(loaded) < 15
