"""The dense part as a program: every backbone and task, for any number of rows, as the ranker itself computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from learn_rank.adaptor import LearnAdaptor
from learn_rank.options import with_changes
from learn_rank.ranker.backbones.features import Widths
from learn_rank.ranker.backbones.options import BACKBONES
from learn_rank.ranker.model import Ranker
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.outputs.dense_program import DenseScorer, can_write_onnx, write_programs
from learn_rank.ranker.tasks import build_heads
from learn_rank.schema import Task
from learn_rank.serving.folder import ServedDense, ServedModel, ServedSequence, ServedSparse
from learn_rank.serving.programs import open_program

DIM, VECTOR = 4, 6
SPARSE = tuple(ServedSparse(name, DIM, "item") for name in ("user_id", "item_id", "genres"))
SEQUENCES = (ServedSequence("past", "item_id", 9, True), ServedSequence("seen", "item_id", 9, True))
CASES: list[dict[str, Any]] = [{"backbone.name": name} for name in BACKBONES]
CASES += [
    {"task.name": "esmm", "backbone.name": "dlrm"},
    {"task.name": "mmoe"},
    {"adaptor.use_learn": False, "backbone.name": "din"},
]


def scorer_of(options: RankerOptions) -> DenseScorer:
    torch.manual_seed(0)
    adaptor = LearnAdaptor(VECTOR, VECTOR, fusion_dim=4) if options.adaptor.use_learn else None
    widths = Widths(
        dense=1,
        sparse=(DIM,) * 3,
        learn=0 if adaptor is None else adaptor.feature_dim,
        sequences=(DIM,) * 2,
        names=("user_id", "item_id", "genres"),
    )
    ranker = Ranker(nn.Module(), backbone=build_heads(widths, options), adaptor=adaptor)
    for parameter in ranker.parameters():  # missing vectors, biases: none is zero
        nn.init.normal_(parameter, std=0.3)
    return DenseScorer(ranker, num_sequences=2).eval()


def model_of(options: RankerOptions) -> ServedModel:
    dim = VECTOR if options.adaptor.use_learn else 0
    return ServedModel(SPARSE, (ServedDense("age", "user"),), SEQUENCES, (Task("click", "click"),), dim, dim, None, {})


def inputs_of(model: ServedModel, num_rows: int, lengths: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(num_rows)

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(num_rows, *shape, generator=generator)

    tensors = [rows(1), rows(3 * DIM)]
    if model.has_learn:
        tensors += [rows(VECTOR)[:1].expand(num_rows, -1), rows(VECTOR)]  # one user's vector, seen by every row
        tensors += [torch.arange(num_rows) % 3 != 0, torch.arange(num_rows) % 2 != 0]
    for length in lengths:
        mask = torch.arange(length) < torch.arange(num_rows).clamp(max=length).unsqueeze(1)
        tensors += [rows(length, DIM) * mask.unsqueeze(2), mask, rows(DIM)]
    return tuple(tensors)


@pytest.mark.parametrize("options", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_program_gives_the_rankers_logits(options: dict[str, Any], tmp_path: Path) -> None:
    chosen = with_changes(RankerOptions(), {"backbone.hidden_dims": [8, 4], **options})
    scorer = scorer_of(chosen)
    model = write_programs(scorer, model_of(chosen), tmp_path, onnx=False)
    program = open_program(tmp_path, model, backend="torch", bf16=False, threads=None)
    for num_rows, lengths in ((1, (1, 1)), (2, (2, 1)), (300, (9, 4)), (7, (5, 5))):
        inputs = inputs_of(model, num_rows, lengths)
        with torch.no_grad():
            expected = scorer(*inputs)
        logits = program(inputs)
        assert logits.shape == (3 if "task.name" in options else 1, num_rows)
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
        assert num_rows < 3 or expected.std() > 0.01


def test_the_cvr_head_is_no_part_of_the_program(tmp_path: Path) -> None:
    options = with_changes(RankerOptions(), {"backbone.hidden_dims": [8]})
    write_programs(scorer_of(options), model_of(options), tmp_path, onnx=False)
    program = torch.export.load(tmp_path / "scorer.pt2")
    used = {str(name) for node in program.graph.nodes if node.op == "call_function" for name in node.all_input_nodes}
    assert any("fusion" in name for name in used)
    assert not any("cvr" in name for name in used)


@pytest.mark.skipif(not can_write_onnx(), reason="onnx and onnxscript are not installed")
@pytest.mark.parametrize(
    "options", [{"backbone.name": "finalmlp"}, {"task.name": "mmoe"}], ids=lambda case: "".join(case.values())
)
def test_onnx_program_gives_the_rankers_logits(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    chosen = with_changes(RankerOptions(), {"backbone.hidden_dims": [8, 4], **options})
    scorer = scorer_of(chosen)
    model = write_programs(scorer, model_of(chosen), tmp_path, onnx=True)
    program = open_program(tmp_path, model, backend="onnx", bf16=False, threads=1)
    for num_rows, lengths in ((1, (1, 1)), (300, (9, 4))):
        inputs = inputs_of(model, num_rows, lengths)
        with torch.no_grad():
            torch.testing.assert_close(program(inputs), scorer(*inputs), atol=1e-5, rtol=1e-4)
