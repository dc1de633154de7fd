"""The dense part of a ranker, all that comes after its lookups, as a program: torch.export and ONNX."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from learn_rank import checkpoint
from learn_rank.distributed import process_group
from learn_rank.fingerprints import file_checksum
from learn_rank.ranker.backbones.features import Features, SequenceEmbeddings
from learn_rank.ranker.data.vectors import LearnVectors
from learn_rank.ranker.inputs import RankerInputs, open_inputs
from learn_rank.ranker.model import Ranker, build_ranker
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.sharding import TABLES
from learn_rank.ranker.trained import trained_options
from learn_rank.serving.folder import LOGITS, ONNX, PROGRAM, ServedModel
from learn_rank.serving.program_file import read_program

_EXAMPLE_ROWS, _EXAMPLE_LENGTH = 7, 5


class DenseScorer(nn.Module):
    """A ranker without its tables: looked-up tensors, in the order of `ServedModel.inputs`, -> logits [T, N]."""

    def __init__(self, ranker: Ranker, *, num_sequences: int) -> None:
        super().__init__()
        self.ranker = ranker
        self.num_sequences = num_sequences

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        split = len(others) - 3 * self.num_sequences
        tensors = iter(others[split:])
        sequences = tuple(SequenceEmbeddings(*three) for three in zip(tensors, tensors, tensors, strict=True))
        vectors = LearnVectors(*others[:split]) if split else None
        return self.ranker.of_features(Features(dense, sparse, sequences=sequences), vectors).logits


def load_scorer(prepared: Path, stores: Path | None, checkpoint_dir: Path) -> DenseScorer:
    """The dense part of a trained ranker, by the weights of its best epoch."""
    options, _ = trained_options(checkpoint_dir)
    with process_group():
        return load(open_inputs(prepared, stores, options), options, checkpoint_dir)[0]


def load(inputs: RankerInputs, options: RankerOptions, checkpoint_dir: Path) -> tuple[DenseScorer, list[str]]:
    """The scorer of opened inputs, and the names that the tables' weights have in the checkpoint."""
    ranker = build_ranker(inputs.features, options, inputs.frozen)
    weights = [name for name in ranker.state_dict() if name.startswith(f"{TABLES}.")]
    ranker.tables = nn.Module()  # without memory, and no part of the program
    state = dict(ranker.state_dict())
    checkpoint.load(checkpoint_dir, {"model": state}, checkpoint.BEST)
    ranker.load_state_dict(state)
    return DenseScorer(ranker, num_sequences=len(inputs.features.sequences)).eval(), weights


def can_write_onnx() -> bool:
    """Whether what torch.onnx.export needs is installed."""
    return find_spec("onnx") is not None and find_spec("onnxscript") is not None


def write_programs(scorer: DenseScorer, model: ServedModel, directory: Path, *, onnx: bool) -> ServedModel:
    """Writes scorer.pt2, and scorer.onnx, for any number of rows and sequence lengths; the model with checksums."""
    example = _example(model)
    rows = torch.export.Dim("rows", min=1)
    dims: list[dict[int, Any]] = [{0: rows} for _ in model.inputs]
    for number, sequence in enumerate(model.sequences):
        for name in (sequence.values, sequence.mask):
            dims[model.inputs.index(name)][1] = torch.export.Dim(f"length_{number}", min=1)
    shapes: dict[str, Any] = {"dense": dims[0], "sparse": dims[1]}
    if len(dims) > 2:
        shapes["others"] = tuple(dims[2:])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch, of its own code
        program = _trimmed(torch.export.export(scorer, example, dynamic_shapes=shapes))
        written = BytesIO()  # torch ends the process where a file that it writes itself does not fit on the disk
        torch.export.save(program, written)
        (directory / PROGRAM).write_bytes(written.getbuffer())
        read_program(directory / PROGRAM)  # refuses what a scorer will not run
        if onnx:
            _write_onnx(program, model, directory / ONNX)
    programs = [PROGRAM, ONNX] if onnx else [PROGRAM]
    checksums = {name: file_checksum(directory / name) for name in programs}
    return replace(model, checksums=checksums)


def _write_onnx(program: torch.export.ExportedProgram, model: ServedModel, path: Path) -> None:
    # it warns of operators of a library that is not installed
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    torch.onnx.export(
        program,
        f=path,
        input_names=list(model.inputs),
        output_names=[LOGITS],
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _trimmed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Without type checks, which would refuse bfloat16, and without the CVR head, which only they keep alive."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _example(model: ServedModel) -> tuple[torch.Tensor, ...]:
    """Inputs of a few rows."""
    rows = _EXAMPLE_ROWS
    tensors = [torch.zeros(rows, len(model.dense)), torch.zeros(rows, model.sparse_width)]
    if model.has_learn:
        tensors += [torch.zeros(rows, model.user_dim), torch.zeros(rows, model.item_dim)]
        tensors += [torch.ones(rows, dtype=torch.bool) for _ in range(2)]  # one tensor would become one input
    dims = {feature.name: feature.dim for feature in model.sparse}
    for length, sequence in enumerate(model.sequences, _EXAMPLE_LENGTH):  # lengths that are equal would have to stay so
        dim = dims[sequence.of]
        values, mask = torch.zeros(rows, length, dim), torch.ones(rows, length, dtype=torch.bool)
        tensors += [values, mask, torch.zeros(rows, dim)]
    return tuple(tensors)
