"""Tiny random models with tokenizers of single letters, saved as folders; and catalogues as `prepare` writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = ["red tent for two", "red tent", "espresso grinder", "grinder for espresso beans", "tent", "beans and espresso"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MAX_POSITIONS = 32


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bidirectional; [CLS] and [SEP] around each text; 32 absolute positions."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=MAX_POSITIONS, **SIZES)
    return save_random(transformers.BertModel(config), folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Causal, rotary positions; <s> before each text; saved with its head, as LLMs are, and padding on the left."""
    transformers = pytest.importorskip("transformers")
    folder = save_letter_tokenizer(tmp_path_factory.mktemp("llama"), padding_side="left", bos="<s>")
    config = transformers.LlamaConfig(vocab_size=29, max_position_embeddings=MAX_POSITIONS, **SIZES)
    return save_random(transformers.LlamaForCausalLM(config), folder)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Causal with absolute positions, which padding on the left would move; no special tokens at all."""
    transformers = pytest.importorskip("transformers")
    folder = save_letter_tokenizer(tmp_path_factory.mktemp("gpt2"), padding_side="left")
    config = transformers.GPT2Config(
        vocab_size=29, n_positions=MAX_POSITIONS, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    )
    return save_random(transformers.GPT2LMHeadModel(config), folder)


def save_random(model: Any, folder: Path) -> Path:
    """Weights so large that layers, positions and neighbours change a vector far beyond rounding."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "norm" not in name.lower():
            weight.data.normal_(0, 0.3, generator=generator)
    model.save_pretrained(folder)
    return folder


def save_letter_tokenizer(folder: Path, *, padding_side: str = "right", bos: str | None = None) -> Path:
    """One token per letter; 0 <unk>, 1 <s>, 2 </s>, 3 a, ... 28 z; no padding token and no limit."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *LETTERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token=bos, eos_token="</s>", padding_side=padding_side
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def catalogue_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes a prepared folder: items 0, 1, ... with these titles, of which the first `num_trained` are trained on."""

    def write(titles: Iterable[str | None], *, num_trained: int = 5, name: str = "prepare") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        texts = pa.array(list(titles), pa.string())
        write_items(folder, pa.table({"item_id": pa.array(range(len(texts))), "title": texts}), num_trained)
        return folder

    return write


def write_items(folder: Path, items: pa.Table, num_trained: int) -> None:
    pq.write_table(items, folder / "items.parquet", row_group_size=4)
    trained = items.slice(0, num_trained)["item_id"]
    counts = pa.table({"item_id": trained, "num_interactions": pa.array([1] * len(trained))})
    pq.write_table(counts, folder / "item_counts.parquet")
