from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, T5Config, T5Model

from learn_rank.alignment.backbone import LoraBackbone
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.towers import Tower
from learn_rank.alignment.trained import load_tower, save_tower, tower_state
from learn_rank.errors import InputError

HIDDEN, INNER, LAYERS, HEADS, KEY_HEADS, LENGTH, RANK = 32, 48, 2, 4, 2, 64, 4
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "vocab_size": 50,
    "max_position_embeddings": LENGTH,
}
Made = Callable[..., tuple[Any, ItemInputs]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(num_key_value_heads=KEY_HEADS, **SIZES)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def options(llama: str) -> dict[str, Any]:
    return {"backbone": llama, "lora_rank": RANK, "lora_alpha": 8, "embedding_dim": 12}


def train(tower: Any, item_inputs: ItemInputs, steps: int = 3) -> None:
    tower.train()
    optimizer = torch.optim.AdamW([weight for weight in tower.parameters() if weight.requires_grad], 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        tower(item_inputs.take(torch.arange(40).view(4, 10), torch.device("cpu")))[..., 0].sum().backward()
        optimizer.step()
    tower.eval()


# Known answers


def test_the_trained_parameters_are_loras_pairs_and_the_projections(made: Made, options: dict[str, Any]) -> None:
    tower, _ = made(options)
    key_width = HIDDEN // HEADS * KEY_HEADS
    linears = [
        (HIDDEN, HIDDEN),
        (HIDDEN, key_width),
        (HIDDEN, key_width),
        (HIDDEN, HIDDEN),
    ]  # query, key, value, output
    linears += [(HIDDEN, INNER), (HIDDEN, INNER), (INNER, HIDDEN)]  # gate, up, down
    lora = LAYERS * sum(RANK * (inputs + outputs) for inputs, outputs in linears)
    projections = (6 * HIDDEN + HIDDEN) + 2 * HIDDEN + (HIDDEN * 12 + 12)  # content, norm, output
    assert sum(weight.numel() for weight in tower.parameters() if weight.requires_grad) == lora + projections


def test_an_untuned_backbone_is_the_llm_over_inputs_of_the_size_of_its_tokens(llama: str) -> None:
    body = LoraBackbone(llama, rank=RANK).eval()
    plain = LlamaForCausalLM.from_pretrained(llama).eval().model
    hidden = 7 * torch.randn(2, 5, HIDDEN)
    scaled = (hidden - hidden.mean(-1, keepdim=True)) / hidden.std(-1, correction=0, keepdim=True)
    scaled = scaled * plain.embed_tokens.weight.std()
    with torch.no_grad():
        assert torch.allclose(body(hidden), plain(inputs_embeds=scaled).last_hidden_state, atol=1e-5)


# Laws


def test_training_leaves_the_llms_weights_and_changes_the_rest(made: Made, options: dict[str, Any]) -> None:
    tower, item_inputs = made(options)
    before = {name: weight.clone() for name, weight in tower.named_parameters()}
    train(tower, item_inputs)
    frozen = 0
    for name, weight in tower.named_parameters():
        assert torch.equal(weight, before[name]) == (not weight.requires_grad), name
        frozen += not weight.requires_grad
    assert frozen == 9 * LAYERS + 2  # seven linears and two norms a layer, the last norm, tokens


def test_a_saved_tower_holds_no_weight_of_the_llm_and_is_loaded_over_it(
    made: Made, options: dict[str, Any], tmp_path: Path
) -> None:
    tower, item_inputs = made(options)
    train(tower, item_inputs)
    frozen = {name for name, weight in tower.named_parameters() if not weight.requires_grad}
    assert frozen
    assert not frozen & tower_state(tower).keys()
    save_tower(tmp_path, tower, item_inputs)
    loaded = load_tower(tmp_path, item_inputs, AlignOptions(max_history=10, **options))
    items = item_inputs.take(torch.arange(40).view(4, 10), torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(loaded(items), tower(items))


@pytest.mark.parametrize("inputs", ["content", "id", "content_and_id"])
def test_no_position_sees_the_future_and_one_item_is_a_history_of_one(
    made: Made, options: dict[str, Any], inputs: str
) -> None:
    tower, item_inputs = made({**options, "inputs": inputs})
    with torch.no_grad():
        rows = torch.arange(12).view(2, 6)
        changed = rows.clone()
        changed[:, 4:] = torch.tensor([25, -1])
        whole, other, alone = (
            embed(item_inputs.take(asked, torch.device("cpu")))
            for embed, asked in ((tower, rows), (tower, changed), (tower.embed_items, rows[:, 0]))
        )
    assert torch.allclose(whole[:, :4], other[:, :4], atol=1e-6)
    assert (whole[:, 4] - other[:, 4]).abs().amax(1).min() > 1e-3
    assert torch.allclose(alone, whole[:, 0], atol=1e-5)


def test_bfloat16_keeps_float32_embeddings(made: Made, options: dict[str, Any]) -> None:
    tower, item_inputs = made(options)
    items = item_inputs.take(torch.arange(40).view(4, 10), torch.device("cpu"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half_precision = tower(items)
    assert half_precision.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(half_precision, tower(items), atol=0.1)


# Bad input


def test_an_encoder_is_refused_since_it_sees_the_future(tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match=r"align\.backbone '.*bert': a position sees later ones.*choose a causal LLM"):
        LoraBackbone(str(tmp_path / "bert"))


def test_a_model_that_reads_no_vectors_is_refused(tmp_path: Path) -> None:
    config = T5Config(d_model=HIDDEN, d_ff=INNER, num_layers=1, num_heads=HEADS, d_kv=8, vocab_size=50)
    T5Model(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError, match=r"does not read a sequence of vectors .*; choose a causal LLM") as error:
        LoraBackbone(str(tmp_path / "t5"))
    assert "\n" not in str(error.value)


def test_histories_longer_than_the_llm_are_refused(llama: str) -> None:
    LoraBackbone(llama, max_length=LENGTH)
    with pytest.raises(InputError, match=r"reads 64 positions, but histories have up to 65; lower align\.max_history"):
        LoraBackbone(llama, max_length=LENGTH + 1)


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"align\.backbone '.*' cannot be loaded as a Hugging Face model") as error:
        LoraBackbone(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_tower_is_not_put_on_another_llm_than_it_was_trained_on(
    made: Made, options: dict[str, Any], tmp_path: Path
) -> None:
    tower, item_inputs = made(options)
    assert isinstance(tower, Tower)
    save_tower(tmp_path, tower, item_inputs)
    LlamaForCausalLM(LlamaConfig(num_key_value_heads=KEY_HEADS, **SIZES)).save_pretrained(tmp_path / "other")
    changed = AlignOptions(max_history=10, **{**options, "backbone": str(tmp_path / "other")})
    with pytest.raises(InputError, match="trained on another model than the one now in"):
        load_tower(tmp_path, item_inputs, changed)
