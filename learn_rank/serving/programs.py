"""Exported programs: looked-up tensors -> logits."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from learn_rank.errors import InputError, reason_of
from learn_rank.fingerprints import file_checksum
from learn_rank.serving.folder import LOGITS, ONNX, PROGRAM, STAGE, ServedModel
from learn_rank.serving.program_file import read_program

TORCH_BACKEND, ONNX_BACKEND = BACKENDS = ("torch", "onnx")


class Program(Protocol):
    """Inputs in the order of `ServedModel.inputs` -> logits [T, N]."""

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor: ...


def open_program(folder: Path, model: ServedModel, *, backend: str, bf16: bool, threads: int | None) -> Program:
    """InputError: an unknown backend, a program that is missing or differs from what was written."""
    if backend not in BACKENDS:
        raise InputError(f"backend is '{backend}', expected {' or '.join(BACKENDS)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}, expected 1 or more; None leaves it as it is")
    if backend == ONNX_BACKEND:
        if bf16:
            raise InputError("bf16 needs backend=torch")
        return _OnnxProgram(_checked(folder, ONNX, model), model, threads)
    return _TorchProgram(_checked(folder, PROGRAM, model), bf16=bf16, threads=threads)


class _TorchProgram:
    def __init__(self, path: Path, *, bf16: bool, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._module = read_program(path)
        self._bf16 = bf16

    @torch.no_grad()
    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            logits: torch.Tensor = self._module(*inputs)
        return logits.float()


class _OnnxProgram:
    def __init__(self, path: Path, model: ServedModel, threads: int | None) -> None:
        try:
            runtime: Any = import_module("onnxruntime")
        except ModuleNotFoundError:
            raise InputError("backend=onnx needs onnxruntime; pip install 'learn-rank[onnx]', or use backend=torch")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:  # from bytes: tensors in other files, of which no checksum is known, are refused
            self._session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has a class of its own for each failure
            raise InputError(f"{path}: not a program that onnxruntime reads ({reason_of(error)})")
        read = {node.name for node in self._session.get_inputs()}  # what no output depends on is no input
        self._names = [name if name in read else None for name in model.inputs]

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        feed = {
            name: np.ascontiguousarray(tensor.numpy())
            for name, tensor in zip(self._names, inputs, strict=True)
            if name is not None
        }
        return torch.from_numpy(self._session.run([LOGITS], feed)[0])


def _checked(folder: Path, name: str, model: ServedModel) -> Path:
    path = folder / name
    if name not in model.checksums:
        raise InputError(f"{folder}: was exported without {name}; run `learn-rank {STAGE} onnx=true`")
    if not path.is_file() or file_checksum(path) != model.checksums[name]:
        raise InputError(f"{path}: not the file that was written; copy it again, or run `learn-rank {STAGE}` again")
    return path
