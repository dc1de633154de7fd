"""RankerOptions: in groups, readable by OmegaConf, checked, documented, and free of torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest
from omegaconf import OmegaConf

from learn_rank.errors import InputError
from learn_rank.options import flat, from_record, with_changes
from learn_rank.ranker.backbones.options import BACKBONES, BackboneOptions
from learn_rank.ranker.options import RankerOptions, TrainingOptions
from learn_rank.ranker.outputs.options import LearnColumnsOptions
from learn_rank.ranker.tables.options import FrozenOptions
from learn_rank.ranker.training.options import FindOptions


def helps_of(kind: type) -> list[str]:
    """The help of every option, those of groups included."""
    helps = []
    for option in fields(kind):
        if is_dataclass(option.default_factory):
            helps += helps_of(option.default_factory)
        else:
            helps.append(option.metadata["help"])
    return helps


@pytest.mark.parametrize("kind", [RankerOptions, FrozenOptions, FindOptions, LearnColumnsOptions])
def test_every_option_is_explained_in_sentences(kind: type) -> None:
    helps = helps_of(kind)
    assert len(helps) >= 2
    for text in helps:
        assert text.endswith(".")
        assert text[0].isupper() or text.startswith("K/N")


def test_options_are_a_structured_config() -> None:
    config = OmegaConf.structured(RankerOptions)
    words = ["backbone.hidden_dims=[64]", "adaptor.shuffle_seed=3", "training.bf16=true"]
    options = OmegaConf.to_object(OmegaConf.merge(config, OmegaConf.from_dotlist(words)))
    changes = {"backbone.hidden_dims": [64], "adaptor.shuffle_seed": 3, "training.bf16": True}
    assert options == with_changes(RankerOptions(), changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.name": "dcn"}, "no backbone 'dcn'; did you mean 'dcnv2'"),
        ({"adaptor.cvr_space": "click"}, "cvr_space is 'click', expected one of impressions, clicks"),
        ({"task.name": "ctr"}, "ranker.task.name is 'ctr', expected one of click, conversion, esmm, mmoe"),
        ({"task.weights": [1.0]}, r"task.weights is \[1.0\], expected two numbers above 0"),
        ({"task.weights": [1.0, 0.0]}, r"task.weights is \[1.0, 0.0\], expected two numbers above 0"),
        ({"task.num_experts": 0}, "num_experts is 0, expected at least 1"),
        (
            {"task.name": "mmoe", "backbone.name": "dlrm"},
            "task.name=mmoe puts its experts in the place of the backbone; leave out ranker.backbone.name=dlrm",
        ),
        ({"tables.embedding_dim": 6}, "embedding_dim is 6, expected a multiple of 4"),
        ({"backbone.masknet.num_blocks": -1}, "ranker.backbone.masknet.num_blocks is -1, expected at least 0"),
        ({"backbone.masknet.mask_ratio": 0.0}, "mask_ratio is 0.0, expected more than 0"),
        ({"backbone.finalmlp.fusion_heads": 0}, "fusion_heads is 0, expected at least 1"),
        ({"backbone.finalmlp.gate_features": ["user"]}, r"gate_features is \['user'\], expected two sparse features"),
        ({"backbone.din.attention_dims": [36, 0]}, r"attention_dims is \[36, 0\], expected positive widths"),
        ({"training.epochs": 0}, "ranker.training.epochs is 0, expected at least 1"),
        ({"training.learning_rate": 0.0}, "learning_rate is 0.0, expected more than 0"),
        ({"training.learning_rate": float("nan")}, "learning_rate is nan, expected more than 0"),
        ({"tables.learning_rate": 0.0}, "ranker.tables.learning_rate is 0.0, expected more than 0"),
        ({"adaptor.cvr_loss_weight": -1.0}, "cvr_loss_weight is -1.0, expected at least 0"),
        ({"backbone.hidden_dims": []}, "hidden_dims is .*one or more positive widths"),
        ({"backbone.dropout": 1.0}, "dropout is 1.0, expected at least 0 and less than 1"),
        ({"adaptor.shuffle_seed": -1}, "ranker.adaptor.shuffle_seed is -1, expected 0 to 4294967295"),
        ({"checkpoint.keep": 0}, "ranker.checkpoint.keep is 0, expected at least 1"),
        ({"task.name": "conversion", "training.positive_weight": 2.0}, "leave positive_weight out"),
    ],
)
def test_a_wrong_option_is_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_changes(RankerOptions(), change)


def test_weights_are_told_apart_by_what_changes_them() -> None:
    base = RankerOptions()
    other_values = {
        "seed": 1,
        "backbone.name": "dlrm",
        "backbone.dropout": 0.1,
        "backbone.dcnv2.cross_rank": 3,
        "task.name": "esmm",
        "adaptor.fusion_dim": 8,
        "tables.embedding_dim": 8,
        "tables.learning_rate": 0.2,
        "training.learning_rate": 0.1,
        "training.shuffle_rows": 7,
    }
    for name, value in other_values.items():
        assert with_changes(base, {name: value}).of_weights() != base.of_weights(), name


def test_weights_are_not_told_apart_by_how_a_run_is_carried_out() -> None:
    base = RankerOptions()
    other_values = {
        "tables.sharding": "row_wise",
        "tables.row_wise_rows": 5,
        "tables.data_parallel_rows": 5,
        "training.init_from": "runs/yesterday",
        "training.trackers": ["mlflow"],
        "checkpoint.seconds": 1.0,
        "checkpoint.steps": 3,
        "checkpoint.keep": 3,
        "checkpoint.in_background": False,
        "backbone.masknet.num_blocks": 7,  # which dcnv2 does not read
    }
    for name, value in other_values.items():
        assert with_changes(base, {name: value}).of_weights() == base.of_weights(), name


def test_a_backbone_of_ones_own_may_read_any_option() -> None:
    own = with_changes(RankerOptions(), {"backbone.name": "my_rankers:build"})
    assert with_changes(own, {"backbone.masknet.num_blocks": 7}).of_weights() != own.of_weights()


@pytest.mark.parametrize("name", BACKBONES)
def test_options_come_back_from_their_record(name: str) -> None:
    options = with_changes(RankerOptions(), {"backbone.name": name, "training.epochs": 5, "adaptor.shuffle_seed": 2})
    assert RankerOptions.of_record(options.of_weights(), where="run") == options


@pytest.mark.parametrize("record", [{"embedding_dim": 16}, {"backbone": "dcnv2"}, {"training": {"epoch": 1}}])
def test_a_record_of_another_version_is_refused(record: dict) -> None:
    with pytest.raises(InputError, match="run: was trained by another version of learn-rank"):
        RankerOptions.of_record(record, where="run")


def test_options_are_the_arms_own() -> None:
    base = with_changes(RankerOptions(), {"seed": 4})
    arms = {arm: base.for_arm(arm, is_shuffled=arm == "shuffled") for arm in ("baseline", "learn", "shuffled")}
    assert [arms[arm].adaptor.use_learn for arm in arms] == [False, True, True]
    assert [arms[arm].adaptor.shuffle_seed for arm in arms] == [None, None, 4]


def test_groups_can_be_given_whole() -> None:
    options = RankerOptions(backbone=BackboneOptions("din"), training=TrainingOptions(epochs=2))
    assert options.backbone.reads_sequences
    assert flat(options)["training.epochs"] == 2
    assert from_record(RankerOptions, {"backbone": {"name": "din"}, "training": {"epochs": 2}}) == options


def test_options_are_readable_without_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; from learn_rank.ranker.options import RankerOptions"
    subprocess.run([sys.executable, "-c", script], check=True)
