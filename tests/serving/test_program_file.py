"""scorer.pt2 is read as data: programs of torch.export give what torch gives, and hostile ones run nothing."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from learn_rank.errors import InputError
from learn_rank.fingerprints import file_checksum
from learn_rank.serving.folder import ServedModel
from learn_rank.serving.program_file import read_program
from learn_rank.serving.programs import open_program
from tests.hostile import Runs

ROWS = torch.export.Dim("rows", min=1)


class Odd(nn.Module):
    """Views, computed sizes, constants, several outputs of one operator, operators in place, optional tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.register_buffer("steps", torch.arange(6, dtype=torch.int64), persistent=False)
        self.weight = nn.Parameter(torch.randn(6, 6).t())  # not contiguous

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows, width = x.shape
        pairs = self.norm(x).view(rows * 2, width // 2).flip(1).reshape(rows, -1)
        first, second = pairs.chunk(2, dim=1)
        best, place = torch.max(pairs, dim=1)
        attended, _ = self.attention(x.unsqueeze(1), pairs.unsqueeze(1), pairs.unsqueeze(1), key_padding_mask=~mask)
        y = torch.cat([first * torch.tensor(2.5), second], 1) @ self.weight
        y = y + self.steps[place].unsqueeze(1) + torch.nan_to_num(attended.squeeze(1), nan=0.25)
        y += best.unsqueeze(1).to(torch.bfloat16)
        return torch.where(mask, y, torch.full_like(y, -1e9)).sum(1) / max(width, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    program = torch.export.export(
        nn.Sequential(nn.Linear(3, 4), nn.GELU("tanh"), nn.Linear(4, 1)).eval(), (torch.ones(2, 3),)
    )
    torch.export.save(program, tmp_path / "scorer.pt2")
    return tmp_path / "scorer.pt2"


def test_a_program_gives_what_torch_gives_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Odd().eval()
    shapes = {"x": {0: ROWS}, "mask": {0: ROWS}}
    program = torch.export.export(
        module, (torch.randn(5, 6), torch.ones(5, 1, dtype=torch.bool)), dynamic_shapes=shapes
    )
    torch.export.save(program, tmp_path / "scorer.pt2")
    module = read_program(tmp_path / "scorer.pt2")
    for rows in (1, 5, 33):
        inputs = torch.randn(rows, 6), torch.arange(rows).unsqueeze(1) % 3 != 1
        with torch.no_grad():
            assert torch.equal(module(*inputs), program.module()(*inputs))


def rewrite(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Every member of the archive as change(name, content) gives it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def changed_json(ending: str, change: Callable[[Any], object]) -> Callable[[str, bytes], bytes]:
    def changed(name: str, content: bytes) -> bytes:
        if not name.endswith(ending):
            return content
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return changed


def nodes(model: Any) -> Any:
    return model["graph_module"]["graph"]["nodes"]


def first_weight(document: Any) -> Any:
    return next(iter(document["config"].values()))


OF_GRAPH: dict[str, Callable[[Any], object]] = {
    r"calls torch\.hub\.load": lambda model: nodes(model)[0].update(target="torch.hub.load"),
    r"calls torch\.ops\.aten\.from_file": lambda model: nodes(model)[0].update(
        target="torch.ops.aten.from_file.default"
    ),
    r"calls torch\.ops\.aten\.linear\.__class__": lambda model: nodes(model)[0].update(
        target="torch.ops.aten.linear.__class__"
    ),
    r"calls torch\.ops\.aten\._unsafe_index": lambda model: nodes(model)[0].update(
        target="torch.ops.aten._unsafe_index.Tensor"
    ),
    r"calls torch\.ops\.mylib\.run": lambda model: nodes(model)[0].update(target="torch.ops.mylib.run.default"),
    r"calls _operator\.attrgetter": lambda model: nodes(model)[0].update(target="_operator.attrgetter"),
    "an argument is as_graph": lambda model: nodes(model)[0]["inputs"][0].update(arg={"as_graph": {}}),
    "as_int is '1'": lambda model: nodes(model)[0]["inputs"][0].update(arg={"as_int": "1"}),
    "takes a custom_obj": lambda model: model["graph_module"]["signature"]["input_specs"][0].update(
        {"custom_obj": model["graph_module"]["signature"]["input_specs"][0].popitem()[1]}
    ),
    "its format is 7, expected 8": lambda model: model["schema_version"].update(major=7),
    "KeyError": lambda model: model.clear(),
}
OF_WEIGHTS: dict[str, Callable[[Any], object]] = {
    "is a pickle": lambda document: first_weight(document).update(use_pickle=True),
    "out of bounds": lambda document: first_weight(document)["tensor_meta"].update(sizes=[{"as_int": 1 << 20}] * 2),
    "invalid storage offset": lambda document: first_weight(document)["tensor_meta"].update(
        storage_offset={"as_int": -4}
    ),
    "no item named": lambda document: first_weight(document).update(path_name="../../../secret"),
}


@pytest.mark.parametrize("message", [*OF_GRAPH, *OF_WEIGHTS])
def test_what_is_not_run_here_is_refused(path: Path, message: str) -> None:
    if message in OF_GRAPH:
        rewrite(path, changed_json("models/model.json", OF_GRAPH[message]))
    else:
        rewrite(path, changed_json("model_weights_config.json", OF_WEIGHTS[message]))
    with pytest.raises(InputError, match=rf"scorer\.pt2: not a program that a scorer runs \(.*{message}"):
        read_program(path)


def test_pickles_and_expressions_in_the_archive_are_never_run(path: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = io.BytesIO()
    torch.save(Runs(marker), evil)
    inputs = torch.ones(2, 3)
    expected = read_program(path)(inputs)
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"

    def infect(model: Any) -> None:
        model["guards_code"] = [code]
        model["range_constraints"] = {code: {"min_val": 1, "max_val": None}}
        graph = model["graph_module"]["graph"]
        graph["sym_int_values"] = {"s0": {"as_expr": {"expr_str": code, "hint": {"as_int": 2}}}}
        graph["name"] = code
        graph["nodes"][0]["name"] = code
        renamed = json.loads(json.dumps(graph).replace('"linear"', json.dumps(f"linear = 1; {code}")))
        model["graph_module"]["graph"] = renamed

    def change(name: str, content: bytes) -> bytes:
        if "sample_inputs" in name:
            return evil.getvalue()
        return changed_json("models/model.json", infect)(name, content)

    rewrite(path, change)
    assert torch.equal(read_program(path)(inputs), expected)
    assert not marker.exists()


def test_a_file_that_is_damaged_anywhere_is_refused_or_the_same_program(path: Path) -> None:
    whole, inputs = path.read_bytes(), torch.ones(2, 3)
    expected = read_program(path)(inputs)
    for at in range(0, len(whole), 97):
        content = bytearray(whole)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        try:
            program = read_program(path)
        except InputError:
            continue
        assert torch.equal(program(inputs), expected)


def test_an_onnx_program_with_tensors_elsewhere_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (tmp_path / "secret").write_bytes(bytes(16))
    weight = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", "secret"), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    rows = [onnx.helper.make_tensor_value_info(name, 1, [4]) for name in ("x", "logits")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["logits"])], "g", *([row] for row in rows)
    )
    graph.initializer.append(weight)
    path = tmp_path / "scorer.onnx"
    for content in (onnx.helper.make_model(graph).SerializeToString(), b"\x08\x09 no program"):
        path.write_bytes(content)
        model = ServedModel((), (), (), (), 0, 0, None, checksums={"scorer.onnx": file_checksum(path)})
        with pytest.raises(InputError, match=r"scorer\.onnx: not a program that onnxruntime reads \(") as error:
            open_program(tmp_path, model, backend="onnx", bf16=False, threads=1)
        assert "\n" not in str(error.value)
