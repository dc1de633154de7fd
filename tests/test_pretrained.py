from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from learn_rank.errors import InputError
from learn_rank.pretrained import load_model, locate_model, model_fingerprint


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=20
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_folder_is_loaded_without_its_head_in_evaluation_mode(llama: Path) -> None:
    network = load_model(str(llama), option="encoder.model")
    assert type(network).__name__ == "LlamaModel"
    assert not network.training
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    half = load_model(str(llama), option="encoder.model", dtype="bfloat16")
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_the_fingerprint_follows_the_files_and_not_their_place(llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    before = model_fingerprint(str(llama), option="encoder.model")
    assert model_fingerprint(str(copy), option="encoder.model") == before
    (copy / "config.json").write_text("{}")
    assert model_fingerprint(str(copy), option="encoder.model") != before
    assert model_fingerprint("some/model", option="encoder.model") == "some/model"


def test_a_folder_of_other_things_is_not_read_through(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"encoder\.model '.*' is a folder without config\.json"):
        model_fingerprint(str(tmp_path), option="encoder.model")


def test_a_package_that_is_absent_or_holds_no_model_is_one_line() -> None:
    with pytest.raises(InputError, match=r"align\.backbone: no package 'nowhere_to_be_found' is installed"):
        locate_model("package:nowhere_to_be_found", option="align.backbone")
    with pytest.raises(InputError, match=r"align\.backbone: package 'json' has no folder 'model'"):
        locate_model("package:json", option="align.backbone")


@pytest.mark.parametrize("damage", ["not there", "empty", "cut off", "no weights", "not json"])
def test_a_folder_that_is_no_model_is_one_line(llama: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    if damage != "not there":
        shutil.copytree(llama, folder)
    weights = folder / "model.safetensors"
    if damage == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif damage == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "not json":
        (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"encoder\.model '.*model' cannot be loaded as a Hugging Face model") as error:
        load_model(str(folder), option="encoder.model")
    assert "\n" not in str(error.value)


def test_weights_of_another_architecture_are_not_replaced_by_random_ones(llama: Path, tmp_path: Path) -> None:
    config = BertConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    BertModel(config).save_pretrained(tmp_path / "bert")
    shutil.copytree(llama, tmp_path / "mixed")
    shutil.copy(tmp_path / "bert" / "model.safetensors", tmp_path / "mixed" / "model.safetensors")
    with pytest.raises(InputError, match=r"mixed': its files lack 11 of the weights, first embed_tokens\.weight"):
        load_model(str(tmp_path / "mixed"), option="align.backbone")
    load_model(str(tmp_path / "bert"), option="encoder.model")
