from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.artifact import Manifest
from learn_rank.content import extract as extraction
from learn_rank.content.encoder import EncoderOptions
from learn_rank.content.extract import extract
from learn_rank.content.text import TextOptions
from learn_rank.errors import InputError
from learn_rank.publish import publish
from tests.content.conftest import TEXTS, save_random, write_items

torch = pytest.importorskip("torch")

from learn_rank.content import catalogue, encode  # noqa: E402
from learn_rank.content.encoders import Encoder, huggingface, tfidf  # noqa: E402
from learn_rank.store.reader import FrozenStore  # noqa: E402

Write = Callable[..., Path]
TITLES = [*TEXTS, None, "  ", "red tent"]
PLAIN = TextOptions(template="{value}")


def hf(model: Path, **others: Any) -> EncoderOptions:
    """One text per batch unless told otherwise, so that a vector has the same bits whatever is encoded with it."""
    return EncoderOptions(kind="hf", model=str(model), text=PLAIN, **{"batch_tokens": 1, **others})


def stored(prepared: Path, folder: Path, options: EncoderOptions) -> FrozenStore:
    with publish(folder, Manifest("extract", {}, {}), is_resumable=True) as (work, facts):
        facts.update(extract(prepared, work, options, previous=folder))
    return FrozenStore(folder, stage="extract")


def vectors_of(store: FrozenStore, ids: list[Any]) -> np.ndarray:
    vectors, mask = store.lookup(pa.array(ids))
    assert mask.all()
    return vectors.numpy()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is given to a tokenizer to be encoded."""
    seen: list[str] = []
    tokenize = huggingface.HuggingFace.tokenize

    def spy(self: Any, texts: list[str]) -> Any:
        seen.extend(texts)
        return tokenize(self, texts)

    monkeypatch.setattr(huggingface.HuggingFace, "tokenize", spy)
    return seen


# Known answers


def test_each_item_has_the_vector_of_its_text(catalogue_of: Write, tiny_bert: Path, tmp_path: Path) -> None:
    prepared = catalogue_of(TITLES)
    store = stored(prepared, tmp_path / "extract", hf(tiny_bert))
    encoder = huggingface.HuggingFace(hf(tiny_bert))
    expected = encoder.encode(encoder.tokenize([*TEXTS, "red tent"]).ids)
    np.testing.assert_allclose(vectors_of(store, [0, 1, 2, 3, 4, 5, 8]), expected, rtol=1e-3, atol=1e-3)  # float16


@pytest.mark.parametrize("kind", ["tfidf_svd", "hf"])
def test_items_without_text_get_no_row_and_equal_texts_one_vector(
    kind: str, catalogue_of: Write, tiny_bert: Path, tmp_path: Path
) -> None:
    options = hf(tiny_bert) if kind == "hf" else EncoderOptions(dim=3, min_count=1)
    store = stored(catalogue_of(TITLES), tmp_path / "extract", options)
    assert (store.rows_of(pa.array(range(9))) >= 0).tolist() == [True] * 6 + [False, False, True]
    facts = store.manifest.facts
    counted = {name: facts[name] for name in ("items_encoded", "items_reused", "items_without_text", "distinct_texts")}
    assert counted == {"items_encoded": 7, "items_reused": 0, "items_without_text": 2, "distinct_texts": 6}
    assert np.array_equal(vectors_of(store, [1]), vectors_of(store, [8]))


def test_a_text_is_encoded_once_however_many_items_have_it(
    catalogue_of: Write, tiny_bert: Path, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_CHUNK_ROWS", 7)  # fewer than have the text
    store = stored(catalogue_of(["tent"] * 50 + ["grinder"]), tmp_path / "extract", hf(tiny_bert))
    assert sorted(encoded) == ["grinder", "tent"]
    assert (store.num_rows, store.manifest.facts["items_encoded"]) == (51, 51)
    assert len(np.unique(vectors_of(store, list(range(50))), axis=0)) == 1


def test_cut_texts_are_counted_once_each(catalogue_of: Write, tiny_llama: Path, tmp_path: Path) -> None:
    titles = ["abc", "abcdef", "abcdef", "abcdeg", None]
    store = stored(catalogue_of(titles), tmp_path / "extract", hf(tiny_llama, max_tokens=6))
    assert store.manifest.facts["texts_cut"] == 2
    assert np.array_equal(vectors_of(store, [1]), vectors_of(store, [3]))  # they differ behind the cut


def test_string_ids(tmp_path: Path, tiny_bert: Path) -> None:
    items = pa.table({"item_id": ["N1", "ÿ", "b"], "title": ["tent", "grinder", "tent"]})
    (tmp_path / "prepare").mkdir()
    write_items(tmp_path / "prepare", items, num_trained=3)
    for options in (hf(tiny_bert), EncoderOptions(dim=1, min_count=1)):
        store = stored(tmp_path / "prepare", tmp_path / options.kind, options)
        assert np.array_equal(vectors_of(store, ["N1"]), vectors_of(store, ["b"]))


class CountsOfLetters(Encoder):
    """An encoder of one's own, as short as can be."""

    def __init__(self, options: EncoderOptions, fitted: Any) -> None:
        assert fitted == {}

    def encode(self, ids: Any, on_batch: Any = None) -> np.ndarray:
        return np.array([[text.count(letter) for letter in "aet"] for text in ids], np.float32)


def test_an_encoder_of_ones_own_is_named_by_its_module(catalogue_of: Write, tmp_path: Path) -> None:
    options = EncoderOptions(kind=f"{__name__}:CountsOfLetters", text=PLAIN)
    store = stored(catalogue_of(["red tent", None, "tea"]), tmp_path / "extract", options)
    assert vectors_of(store, [0, 2]).tolist() == [[0, 2, 2], [1, 1, 1]]
    again = stored(catalogue_of(["red tent", "a", "tea"]), tmp_path / "extract", options)
    assert (again.manifest.facts["items_encoded"], again.manifest.facts["items_reused"]) == (1, 2)


# Laws


def test_parts_blocks_and_batches_change_nothing(
    catalogue_of: Write, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = catalogue_of([f"{'tent ' * (i % 9)}grinder {i % 23}" for i in range(60)])
    whole = stored(prepared, tmp_path / "whole", hf(tiny_bert))
    monkeypatch.setattr(encode, "_FILE_TEXTS", 4)
    monkeypatch.setattr(catalogue, "BLOCK_TEXTS", 10)
    monkeypatch.setattr(catalogue, "_BATCH_ROWS", 7)
    assert stored(prepared, tmp_path / "parts", hf(tiny_bert)).fingerprint == whole.fingerprint
    together = stored(prepared, tmp_path / "batches", hf(tiny_bert, batch_tokens=200))
    ids = list(range(60))
    np.testing.assert_allclose(vectors_of(together, ids), vectors_of(whole, ids), rtol=1e-3, atol=1e-3)


def test_tfidf_learns_its_words_from_training_items_alone(catalogue_of: Write, tmp_path: Path) -> None:
    options = EncoderOptions(dim=3, min_count=1)
    first = stored(catalogue_of(TEXTS), tmp_path / "one", options)
    changed = [*TEXTS[:5], "a wholly different tale"]  # item 5 is not in the training window
    second = stored(catalogue_of(changed), tmp_path / "two", options)
    ids = list(range(5))
    assert np.array_equal(vectors_of(first, ids), vectors_of(second, ids))


# Incremental


def test_new_and_changed_texts_alone_are_encoded_and_the_store_is_that_of_a_full_run(
    catalogue_of: Write, tiny_llama: Path, tmp_path: Path, encoded: list[str]
) -> None:
    options = hf(tiny_llama, max_tokens=12)
    stored(catalogue_of(["red tent", "espresso grinder", "mat", "z", "mat"]), tmp_path / "extract", options)
    encoded.clear()
    # item 1 is changed to what item 0 was, item 2 to something new, item 3 is gone, 5 and 6 are new
    titles = ["red tent", "red tent", "blue mat", None, "mat", "espresso grinder", "a very long new one"]
    prepared = catalogue_of(titles)
    grown = stored(prepared, tmp_path / "extract", options)
    assert sorted(encoded) == ["a very long new one", "blue mat"]
    full = stored(prepared, tmp_path / "full", options)
    assert grown.fingerprint == full.fingerprint  # every bit of every file
    names = ("items_encoded", "items_reused", "items_without_text", "distinct_texts", "texts_cut")
    assert [grown.manifest.facts[name] for name in names] == [2, 4, 1, 5, 2]
    assert [full.manifest.facts[name] for name in names] == [6, 0, 1, 5, 2]


def test_a_third_run_reuses_what_the_second_one_reused(
    catalogue_of: Write, tiny_llama: Path, tmp_path: Path, encoded: list[str]
) -> None:
    for titles in (["red tent"], ["red tent", "mat"], ["mat", "red tent"]):
        encoded.clear()
        store = stored(catalogue_of(titles), tmp_path / "extract", hf(tiny_llama))
    assert encoded == []
    assert store.manifest.facts["items_reused"] == 2


def test_where_all_texts_are_known_no_model_is_loaded(
    catalogue_of: Write, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = catalogue_of(["red tent", "mat"])
    first = stored(prepared, tmp_path / "extract", hf(tiny_llama))
    monkeypatch.setattr(huggingface.HuggingFace, "__init__", None)
    assert stored(prepared, tmp_path / "extract", hf(tiny_llama)).fingerprint == first.fingerprint


@pytest.mark.parametrize("change", ["tokens", "model", "kind"])
def test_vectors_of_another_encoder_are_never_reused(
    change: str, catalogue_of: Write, tiny_llama: Path, tiny_bert: Path, tmp_path: Path, encoded: list[str]
) -> None:
    prepared = catalogue_of(["red tent", "mat"])
    before = {
        "tokens": hf(tiny_llama, max_tokens=3),
        "model": hf(tiny_bert),
        "kind": EncoderOptions(dim=16, min_count=1),
    }[change]
    stored(prepared, tmp_path / "extract", before)
    encoded.clear()
    store = stored(prepared, tmp_path / "extract", hf(tiny_llama))
    assert sorted(encoded) == ["mat", "red tent"]
    assert store.fingerprint == stored(prepared, tmp_path / "other", hf(tiny_llama)).fingerprint


def test_a_damaged_store_is_replaced_and_not_reused(
    catalogue_of: Write, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = catalogue_of(["red tent", "mat"])
    whole = stored(prepared, tmp_path / "extract", hf(tiny_llama))
    rows = tmp_path / "extract" / "v1" / "rows.bin"
    rows.write_bytes(rows.read_bytes()[:-1])
    again = stored(prepared, tmp_path / "extract", hf(tiny_llama))
    assert (again.fingerprint, again.manifest.facts["items_reused"]) == (whole.fingerprint, 0)
    assert "all texts are encoded again" in capsys.readouterr().err


def test_a_fitted_encoder_encodes_new_texts_alone_until_it_would_learn_from_others(
    catalogue_of: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EncoderOptions(dim=3, min_count=1)
    fits = count_fits(monkeypatch)
    stored(catalogue_of(TEXTS), tmp_path / "extract", options)
    prepared = catalogue_of([*TEXTS, "beans in a tent"])  # not in the training window
    grown = stored(prepared, tmp_path / "extract", options)
    assert (grown.manifest.facts["items_encoded"], grown.manifest.facts["items_reused"]) == (1, 6)
    assert grown.fingerprint == stored(prepared, tmp_path / "full", options).fingerprint
    relearned = stored(catalogue_of(TEXTS, num_trained=6), tmp_path / "extract", options)
    assert relearned.manifest.facts["items_reused"] == 0
    fits.clear()
    stored(catalogue_of(TEXTS, num_trained=6), tmp_path / "extract", options)
    assert fits == []  # all texts are known


def count_fits(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    fits: list[object] = []
    fit = tfidf.TfidfSvd.fit
    monkeypatch.setattr(tfidf.TfidfSvd, "fit", lambda texts, options: fits.append(options) or fit(texts, options))
    return fits


# Unfinished work


def test_a_fitted_encoder_is_kept_with_its_vectors(
    catalogue_of: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EncoderOptions(dim=3, min_count=1)
    fits = count_fits(monkeypatch)
    monkeypatch.setattr(encode, "_FILE_TEXTS", 2)
    prepared, work = catalogue_of(TITLES), tmp_path / "work"
    work.mkdir()
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(extraction, "write_batches", None)
        extract(prepared, work, options)
    (
        work / "parts" / sorted(path.name for path in (work / "parts").glob("*.npz") if "fitted" not in path.name)[0]
    ).unlink()
    extract(prepared, work, options)
    assert len(fits) == 1
    assert sorted(path.name for path in work.iterdir()) == ["current", "texts.parquet", "v1"]
    whole = stored(prepared, tmp_path / "whole", options)
    assert (work / "v1" / "rows.bin").read_bytes() == (tmp_path / "whole" / "v1" / "rows.bin").read_bytes()
    assert whole.num_rows == 7


def test_work_of_other_texts_or_another_encoder_in_the_same_folder_is_not_used(
    catalogue_of: Write, tiny_llama: Path, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "_FILE_TEXTS", 1)
    monkeypatch.setattr(extraction, "write_batches", None)  # all parts are there when this fails
    work = tmp_path / "work"
    work.mkdir()
    prepared = catalogue_of(["red tent", "mat"])
    for options in (hf(tiny_llama), hf(tiny_llama, max_tokens=4)):
        with pytest.raises(TypeError):
            extract(prepared, work, options)
    assert len(encoded) == 4
    with pytest.raises(TypeError):  # one new text: the other's part is used
        extract(catalogue_of(["red tent", "bowl"]), work, hf(tiny_llama))
    assert encoded[4:] == ["bowl"]
    monkeypatch.undo()
    facts = extract(catalogue_of(["red tent", "bowl"], name="again"), work, hf(tiny_llama))
    store = stored(prepared, tmp_path / "extract", hf(tiny_llama))
    assert facts["num_ids"] == 2
    assert not (work / "parts").exists()
    assert sorted(path.name for path in work.iterdir()) == ["current", "texts.parquet", "v1"]
    assert store.num_rows == 2


def test_a_store_that_was_finished_but_not_published_is_not_made_again(
    catalogue_of: Write, tiny_llama: Path, tmp_path: Path, encoded: list[str]
) -> None:
    prepared, other = catalogue_of(["red tent", "mat"]), catalogue_of(["mat", "mat"], name="other")
    facts = extract(prepared, tmp_path / "prepare", hf(tiny_llama))
    encoded.clear()
    assert extract(prepared, tmp_path / "prepare", hf(tiny_llama)) == facts
    assert encoded == []
    assert extract(other, tmp_path / "prepare", hf(tiny_llama))["distinct_texts"] == 1


# Bad input


def test_a_log_without_any_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": [1, 2]}), tmp_path / "items.parquet")
    with pytest.raises(InputError, match=r"items\.parquet: no item has text; set items\.text"):
        extract(tmp_path, tmp_path, EncoderOptions())


def test_tfidf_without_words_or_training_items_is_refused(catalogue_of: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no item of the training window has text"):
        extract(catalogue_of([None, "a tent"], num_trained=1), tmp_path, EncoderOptions())
    with pytest.raises(InputError, match="tfidf_svd finds no words"):
        extract(catalogue_of(["of", "the"], num_trained=2), tmp_path, EncoderOptions(text=PLAIN))
    with pytest.raises(InputError, match="2 texts with 1 words are too few"):
        extract(catalogue_of(["red tent", "red"]), tmp_path, EncoderOptions(min_count=1, text=PLAIN))


def test_a_folder_that_is_no_model_is_refused_before_any_work(catalogue_of: Write, tmp_path: Path) -> None:
    prepared = catalogue_of(TITLES)
    with pytest.raises(InputError, match=r"encoder\.model '.*prepare' is a folder without config\.json"):
        stored(prepared, tmp_path / "extract", hf(prepared))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_a_vector_that_cannot_be_kept_names_its_item_and_text_and_nothing_is_published(
    value: float, catalogue_of: Write, tiny_llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoTokenizer

    broken = tmp_path / "broken"
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(broken)
    model = AutoModel.from_pretrained(tiny_llama)
    save_random(model, broken)
    model.norm.weight.data.fill_(1 if value != 1e5 else 1e6)
    if value != 1e5:
        model.embed_tokens.weight.data[28] = value  # the letter z
    model.save_pretrained(broken)
    prepared = catalogue_of(["red tent", "a maze of tents", "mat"] if value != 1e5 else [None, "a maze of tents"])
    message = "NaN, infinity or a number beyond float16 for item 1 with the text 'a maze of tents'"
    with pytest.raises(InputError, match=message):
        stored(prepared, tmp_path / "extract", hf(broken))
    assert not (tmp_path / "extract").exists()


# Without torch


def test_tfidf_needs_no_torch(catalogue_of: Write, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    code = f"""
import json, sys
from pathlib import Path

class Missing:
    def find_spec(self, name, *others):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from learn_rank.content.encoder import EncoderOptions
from learn_rank.content.extract import extract
facts = extract(Path({str(catalogue_of(TITLES))!r}), Path({str(tmp_path / "work")!r}), EncoderOptions(min_count=1))
print(json.dumps(facts))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_ids"] == 7
