"""Pretrained Hugging Face models: a folder, a hub id, or package:NAME for an installed package that has one."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from learn_rank.errors import InputError, first_line
from learn_rank.fingerprints import file_fingerprint

_LEAST_TOKENS = 2


def locate_model(model: str, *, option: str) -> str:
    """A local folder for package:NAME (its `model` folder), else the folder or hub id as given.

    option: name of the option that the user set, for errors. InputError: no such package.
    """
    if not model.startswith("package:"):
        return model
    name = model.removeprefix("package:")
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise InputError(f"{option}: no package '{name}' is installed; pip install 'learn-rank[minilm]'")
    folder = Path(spec.origin).parent / "model"
    if not folder.is_dir():
        raise InputError(f"{option}: package '{name}' has no folder 'model'")
    return str(folder)


def model_fingerprint(model: str, *, option: str) -> str:
    """Identifies a model's weights: the files of a local folder, else the hub id.

    InputError: a folder that is not a Hugging Face model.
    """
    location = locate_model(model, option=option)
    if not Path(location).is_dir():
        return location
    if not (Path(location) / "config.json").is_file():
        raise InputError(f"{option} '{model}' is a folder without config.json, so not that of a Hugging Face model")
    return file_fingerprint(Path(location))


def check_model(model: str, *, option: str, revision: str = "", trust_remote_code: bool = False) -> None:
    """InputError, as in `load_model`, if no model is there; reads its config, not its weights."""
    from transformers import AutoConfig

    with _loading(model, option=option):
        AutoConfig.from_pretrained(
            locate_model(model, option=option), revision=revision or "main", trust_remote_code=trust_remote_code
        )


def load_model(
    model: str,
    *,
    option: str,
    dtype: str = "float32",
    revision: str = "",
    trust_remote_code: bool = False,
    device_map: str = "",
) -> Any:
    """The network without a head (transformers' AutoModel) in evaluation mode, on the CPU unless device_map is given.

    revision: branch, tag or commit of a hub id. trust_remote_code: run the code that comes with the model. device_map:
    how accelerate spreads the layers over devices. InputError: no such model, incomplete files, code that is not
    trusted, or weights of another architecture, which transformers would replace by random ones.
    """
    import torch
    from transformers import AutoModel

    if device_map and importlib.util.find_spec("accelerate") is None:
        raise InputError(f"{option} '{model}': a device_map needs the package accelerate; pip install accelerate")
    with _loading(model, option=option):
        network, loading = AutoModel.from_pretrained(
            locate_model(model, option=option),
            dtype=getattr(torch, dtype),
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            device_map=device_map or None,
            output_loading_info=True,
        )
    # models trained without a pooler get a new one, which is not used here
    missing = sorted(name for name in loading["missing_keys"] if "pooler" not in name)
    if missing:
        raise InputError(f"{option} '{model}': its files lack {len(missing)} of the weights, first {missing[0]}")
    return network.eval()


def load_tokenizer(model: str, *, option: str, revision: str = "", trust_remote_code: bool = False) -> Any:
    """The model's tokenizer (transformers' AutoTokenizer); InputError as in `load_model`."""
    from transformers import AutoTokenizer

    with _loading(model, option=option):
        tokenizer = AutoTokenizer.from_pretrained(
            locate_model(model, option=option), revision=revision or "main", trust_remote_code=trust_remote_code
        )
    # if the files are missing, transformers makes a tokenizer to which every word is unknown
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < _LEAST_TOKENS:
        raise InputError(f"{option} '{model}' has no tokenizer; copy tokenizer.json, vocab.txt or the like beside it")
    return tokenizer


@contextmanager
def _loading(model: str, *, option: str) -> Iterator[None]:
    """Turns what the libraries raise for a model that cannot be loaded into an InputError."""
    from safetensors import SafetensorError

    try:
        yield
    except Exception as error:
        # ImportError: a package that this model needs; Exception itself: errors of tokenizers, which is written in Rust
        is_known = isinstance(error, OSError | ValueError | ImportError | SafetensorError) or type(error) is Exception
        if not is_known:
            raise
        if "trust_remote_code" in str(error):
            raise InputError(f"{option} '{model}' comes with Python of its own; trust_remote_code=true lets it run")
        raise InputError(f"{option} '{model}' cannot be loaded as a Hugging Face model: {first_line(error)}")
