"""Reads weights from untrusted files: tensors and plain values only, no code is run."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from learn_rank.errors import InputError, reason_of


def read_weights(path: Path, *, map_location: torch.device | str = "cpu", remedy: str) -> dict[str, Any]:
    """A dict of tensors and plain values written by torch.save.

    InputError, ending with the remedy: a file that is incomplete, damaged, or holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # reads the whole file: torch does not compare checksums
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is not what was written")
        content = torch.load(path, weights_only=True, map_location=map_location)
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}, expected a dict")
    except pickle.UnpicklingError:  # its message explains how to load the file anyway
        raise InputError(f"{path}: damaged, or holds more than tensors and plain values, which is not read; {remedy}")
    except Exception as error:  # arbitrary bytes can raise any exception
        raise InputError(f"{path}: damaged, or no file of weights ({reason_of(error)}); {remedy}")
    return content
