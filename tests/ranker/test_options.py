"""RankerOptions: readable by OmegaConf, checked, documented, and free of torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
from omegaconf import OmegaConf

from learn_rank.errors import InputError
from learn_rank.ranker.options import RankerOptions


def test_every_option_says_what_it_does() -> None:
    assert all(option.metadata["help"] for option in fields(RankerOptions))


def test_options_are_a_structured_config() -> None:
    config = OmegaConf.structured(RankerOptions)
    changes = OmegaConf.from_dotlist(["hidden_dims=[64]", "shuffle_seed=3", "bf16=true"])
    options = OmegaConf.to_object(OmegaConf.merge(config, changes))
    assert options == RankerOptions(hidden_dims=[64], shuffle_seed=3, bf16=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "dcn"}, "backbone 'dcn' is unknown; did you mean 'dcnv2'"),
        ({"cvr_space": "click"}, "cvr_space is 'click', expected one of impressions, clicks"),
        ({"task": "ctr"}, "task is 'ctr', expected one of click, conversion, esmm, mmoe"),
        ({"task_weights": [1.0]}, r"task_weights is \[1.0\], expected two numbers above 0"),
        ({"task_weights": [1.0, 0.0]}, r"task_weights is \[1.0, 0.0\], expected two numbers above 0"),
        ({"num_experts": 0}, "num_experts is 0, expected at least 1"),
        (
            {"task": "mmoe", "backbone": "dlrm"},
            "task=mmoe puts its experts in the backbone's place; leave out backbone",
        ),
        ({"embedding_dim": 6}, "embedding_dim is 6, expected a multiple of 4"),
        ({"mask_blocks": -1}, "mask_blocks is -1, expected at least 0"),
        ({"mask_ratio": 0.0}, "mask_ratio is 0.0, expected more than 0"),
        ({"fusion_heads": 0}, "fusion_heads is 0, expected at least 1"),
        ({"attention_dims": [36, 0]}, r"attention_dims is \[36, 0\], expected positive widths"),
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, expected more than 0"),
        ({"cvr_loss_weight": -1.0}, "cvr_loss_weight is -1.0, expected at least 0"),
        ({"hidden_dims": []}, "hidden_dims is .*one or more positive widths"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"shuffle_seed": -1}, "ranker.shuffle_seed is -1, expected 0 to 4294967295"),
    ],
)
def test_a_wrong_option_is_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RankerOptions(**change)


def test_options_are_readable_without_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; from learn_rank.ranker.options import RankerOptions"
    subprocess.run([sys.executable, "-c", script], check=True)
