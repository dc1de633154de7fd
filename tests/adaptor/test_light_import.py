"""The adaptor is importable where nothing but torch is installed."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import sys
for name in ("torchrec", "fbgemm_gpu", "hydra", "transformers", "sklearn", "pyarrow", "duckdb", "pandas"):
    sys.modules[name] = None  # an import of it fails
import torch
from learn_rank.adaptor import LearnAdaptor, cvr_loss
output = LearnAdaptor()(torch.randn(4, 64), torch.randn(4, 64))
cvr_loss(output.cvr_logit, torch.ones(4)).backward()
print(output.features().shape[1])
"""


def test_adaptor_works_with_torch_alone() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "192"
