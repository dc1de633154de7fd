"""Texts -> content vectors: a frozen Hugging Face model, or TF-IDF and SVD where no model is at hand."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.artifact import file_fingerprint
from learn_rank.content.text import TextOptions
from learn_rank.errors import InputError
from learn_rank.progress import progress_bar

Float32Array = npt.NDArray[np.float32]
_DTYPES = ("float32", "bfloat16", "float16")
_CHUNK_TEXTS = 1024


@dataclass
class EncoderOptions:
    """Which encoder turns item texts into content vectors."""

    kind: str = field(default="tfidf_svd", metadata={"help": "tfidf_svd (no download) or hf"})
    model: str = field(default="", metadata={"help": "hf: folder, hub id, or package:NAME of an installed package"})
    max_tokens: int = field(default=256, metadata={"help": "hf: longer texts are cut"})
    batch_tokens: int = field(default=8192, metadata={"help": "hf: padded tokens per batch"})
    dtype: str = field(default="float32", metadata={"help": "hf: float32, bfloat16 or float16"})
    dim: int = field(default=256, metadata={"help": "tfidf_svd: width of the vectors"})
    min_count: int = field(default=2, metadata={"help": "tfidf_svd: rarer words are left out"})
    seed: int = field(default=0, metadata={"help": "tfidf_svd: of the randomised SVD"})
    text: TextOptions = field(default_factory=TextOptions)

    def __post_init__(self) -> None:
        if self.kind not in ("tfidf_svd", "hf"):
            raise InputError(f"encoder.kind is '{self.kind}', expected tfidf_svd or hf")
        if self.kind == "hf" and not self.model:
            raise InputError("encoder.model is empty; give a model folder, a hub id or package:NAME")
        if self.dtype not in _DTYPES:
            raise InputError(f"encoder.dtype is '{self.dtype}', expected one of {', '.join(_DTYPES)}")
        for name in ("max_tokens", "batch_tokens", "dim", "min_count"):
            if getattr(self, name) < 1:
                raise InputError(f"encoder.{name} is {getattr(self, name)}, must be 1 or more")


def encoder_fingerprint(options: EncoderOptions) -> str:
    """Identifies the encoder's weights: the files of a local model, else its name."""
    if options.kind != "hf":
        return options.kind
    location = locate_model(options.model)
    return file_fingerprint(Path(location)) if Path(location).is_dir() else location


def locate_model(model: str) -> str:
    """A local folder for package:NAME (its `model` folder), else the path or hub id as given."""
    if not model.startswith("package:"):
        return model
    name = model.removeprefix("package:")
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise InputError(f"encoder.model: no package '{name}' is installed; pip install 'learn-rank[minilm]'")
    folder = Path(spec.origin).parent / "model"
    if not folder.is_dir():
        raise InputError(f"encoder.model: package '{name}' has no folder 'model'")
    return str(folder)


def encode_tfidf_svd(texts: Sequence[str], fit_on: npt.NDArray[np.bool_], options: EncoderOptions) -> Float32Array:
    """[N] texts -> [N, dim] truncated-SVD scores of word TF-IDF (sublinear), fitted on the texts marked in fit_on [N].

    Fewer words or texts than dim give zeros in the last columns.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=options.min_count, max_df=0.5, stop_words="english")
    training = [text for text, is_fit in zip(texts, fit_on, strict=True) if is_fit]
    try:
        weights = vectorizer.fit_transform(training)
    except ValueError as error:
        raise InputError(f"items: tfidf_svd finds no words in {len(training)} texts ({error}); check items.text")
    width = min(options.dim, weights.shape[0] - 1, weights.shape[1] - 1)
    if width < 1:
        raise InputError(f"items: {weights.shape[0]} texts with {weights.shape[1]} words are too few for tfidf_svd")
    svd = TruncatedSVD(width, random_state=options.seed).fit(weights)
    vectors = np.zeros((len(texts), options.dim), np.float32)
    vectors[:, :width] = svd.transform(vectorizer.transform(texts))
    return vectors


def encode_hf(texts: Sequence[str], options: EncoderOptions, parts: Path) -> Float32Array:
    """[N] texts -> [N, D]: mean over the real tokens of the last hidden states of a frozen model (paper, Fig. 3a).

    Texts are encoded in order of length, in batches of at most batch_tokens padded tokens. Each finished chunk is
    saved in `parts`, so that a killed run goes on where it stopped.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    location = locate_model(options.model)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(location)
        model: Any = AutoModel.from_pretrained(location, dtype=getattr(torch, options.dtype))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"encoder.model '{options.model}' cannot be loaded as a Hugging Face model: {reason}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.eval().requires_grad_(False).to(device)
    max_tokens = min(options.max_tokens, getattr(model.config, "max_position_embeddings", options.max_tokens))
    tokens = [tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"] for text in texts]
    order = sorted(range(len(texts)), key=lambda i: (len(tokens[i]), i))
    parts.mkdir(exist_ok=True)
    chunks: list[Float32Array] = []
    with progress_bar(total=len(texts), description="extract", unit="item") as progress:
        for start in range(0, len(order), _CHUNK_TEXTS):
            chunk = order[start : start + _CHUNK_TEXTS]
            saved = parts / f"{start:012d}.npy"
            if saved.is_file():
                chunks.append(np.load(saved))
                progress.update(len(chunk))
                continue
            vectors = []
            for batch in _token_batches([len(tokens[i]) for i in chunk], options.batch_tokens):
                padded = tokenizer.pad({"input_ids": [tokens[chunk[i]] for i in batch]}, return_tensors="pt").to(device)
                with torch.no_grad():
                    hidden = model(**padded).last_hidden_state  # [B, L, D]
                vectors.append(mean_pool(hidden.float(), padded["attention_mask"]).cpu().numpy())
                progress.update(len(batch))
            chunks.append(np.concatenate(vectors))
            temporary = saved.with_suffix(".tmp.npy")
            np.save(temporary, chunks[-1])
            temporary.replace(saved)
    sorted_vectors = np.concatenate(chunks)
    result = np.empty_like(sorted_vectors)
    result[order] = sorted_vectors
    return result


def mean_pool(hidden: Any, mask: Any) -> Any:
    """[B, L, D] hidden states and [B, L] mask of real tokens -> [B, D] mean over the real tokens."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def _token_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions grouped so that count x longest stays within batch_tokens; lengths ascend."""
    batches: list[list[int]] = []
    for position, length in enumerate(lengths):
        if batches and (len(batches[-1]) + 1) * length <= batch_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches
