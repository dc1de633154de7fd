"""Reads torch.distributed.checkpoint folders from untrusted sources without running code from them.

`.metadata` is a pickle and can run any code when torch unpickles it; so can every saved value that is not a tensor.
Tensors are safe: torch reads them with torch.load(weights_only=True).
"""

from __future__ import annotations

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from learn_rank.errors import reason_of

_METADATA = ".metadata"
_METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),  # and every dtype
    "collections": ("OrderedDict",),
    "pathlib": ("PosixPath", "PurePosixPath"),
    "pathlib._local": ("PosixPath", "PurePosixPath"),  # from Python 3.13 on
}


class CheckpointReader(FileSystemReader):
    """Reads the tensors of a torch.distributed.checkpoint folder, and only tensors.

    stored: name -> metadata of the tensor.
    """

    def __init__(self, folder: Path, files: Collection[str]) -> None:
        """files: names of those that may hold tensors. ValueError: damaged metadata, or values that are not tensors."""
        super().__init__(folder)
        self._metadata = _read_metadata(folder / _METADATA, files)
        self.stored: dict[str, TensorStorageMetadata] = self._metadata.state_dict_metadata  # type: ignore[assignment]

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


def _read_metadata(path: Path, files: Collection[str]) -> Metadata:
    try:
        with path.open("rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
        if not isinstance(metadata, Metadata):
            raise TypeError(f"a {type(metadata).__name__}, expected Metadata")
        tensors, places = metadata.state_dict_metadata.items(), metadata.storage_data.values()
        strange = next((name for name, tensor in tensors if type(tensor) is not TensorStorageMetadata), None)
        outside = next((place.relative_path for place in places if place.relative_path not in files), None)
    except Exception as error:  # arbitrary bytes can raise any exception
        raise ValueError(f"{path.name}: {reason_of(error)}")
    if strange is not None:  # torch would unpickle it, code included
        raise ValueError(f"{path.name}: {strange!r} is no tensor")
    if outside is not None:
        raise ValueError(f"{path.name}: names {outside!r}, which is no file of this checkpoint")
    return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Allows the classes that torch.distributed.checkpoint describes tensors with and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _METADATA_CLASSES.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which no description of tensors needs")
