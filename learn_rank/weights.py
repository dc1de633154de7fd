"""Weights from a file that others may have made: tensors are read, and nothing that the file asks to be run."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from learn_rank.errors import InputError, reason_of


def read_weights(path: Path, *, map_location: torch.device | str = "cpu", remedy: str) -> dict[str, Any]:
    """What torch.save wrote of tensors and plain values in a dict.

    InputError, with the remedy: a file that is not whole, or changed, or that holds more than tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # reads all of it: torch compares no checksum
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is not what was written")
        content = torch.load(path, weights_only=True, map_location=map_location)
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}, expected a dict")
    except pickle.UnpicklingError:  # whose message says how to load it all the same
        raise InputError(f"{path}: damaged, or holds more than tensors and plain values, which is not read; {remedy}")
    except Exception as error:  # bytes that are anything raise anything
        raise InputError(f"{path}: damaged, or no file of weights ({reason_of(error)}); {remedy}")
    return content
