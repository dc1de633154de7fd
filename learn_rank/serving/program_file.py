"""scorer.pt2 -> a module, without torch.export.load: the file is read as data, and cannot run code of its own.

torch.export.load would unpickle parts of the file and evaluate expressions in it, and so run whatever they ask for. The
file is a zip, of which two kinds of members are needed here:

    NAME/models/model.json                         the graph: nodes of one torch operator each
    NAME/data/{weights,constants}/                 raw tensors, and a .json that says their types and shapes

A graph may hold ATen's public operators and arithmetic on sizes, none of which reads a file, runs Python or reaches
beyond its tensors. Everything else (pickles, subgraphs, custom operators and objects) is refused.
"""

from __future__ import annotations

import json
import operator
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from learn_rank.errors import InputError, reason_of

_SCHEMA = 8  # major version of the graph's format, torch._export.serde.schema
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_ASSERTIONS = ("_assert_scalar", "_assert_tensor_metadata")
_READS_FILES = "from_file"
_ON_SIZES = {
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "truediv", "eq", "ne", "lt", "le", "gt", "ge")
}
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_MEMORY_FORMATS = {1: torch.contiguous_format, 4: torch.preserve_format}
_STRIDED = 7  # a layout
_POSITIONAL = 1  # a kind of argument
_NOT_FINITE = ("Infinity", "-Infinity", "NaN")
# of a tensor's or number's place in the graph, by the kind of argument
_NAMES = {"as_tensor": "name", "as_sym_int": "as_name", "as_sym_float": "as_name", "as_sym_bool": "as_name"}
_PLAIN: dict[str, type] = {"as_int": int, "as_float": float, "as_bool": bool, "as_string": str}
_LISTS = {
    "as_tensors": "as_tensor",
    "as_sym_ints": "as_sym_int",
    "as_ints": "as_int",
    "as_floats": "as_float",
    "as_bools": "as_bool",
    "as_optional_tensors": "",
}


def read_program(path: Path) -> nn.Module:
    """Tensors in the order of the exported module's inputs -> its one output tensor.

    InputError: a damaged file, or one that holds more than this reads.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except Exception as error:  # arbitrary bytes can raise any error
        raise InputError(f"{path}: not a program that a scorer runs ({reason_of(error)})")


def _read(archive: zipfile.ZipFile) -> nn.Module:
    root = archive.namelist()[0].partition("/")[0]
    model = json.loads(archive.read(f"{root}/models/model.json"))
    if model["schema_version"]["major"] != _SCHEMA:
        raise ValueError(f"its format is {model['schema_version']['major']}, expected {_SCHEMA}")
    tensors = {
        name: tensor for kind in ("weights", "constants") for name, tensor in _tensors(archive, root, kind).items()
    }
    signature, graph = model["graph_module"]["signature"], model["graph_module"]["graph"]
    owner, built = nn.Module(), _Graph()
    for number, spec in enumerate(signature["input_specs"]):
        ((kind, fields),) = spec.items()
        if kind == "user_input":
            built.add_input(_only(fields["arg"], "as_tensor")["name"], number)
        elif kind in ("parameter", "buffer", "tensor_constant"):
            owner.register_buffer(f"tensor_{number}", tensors[fields[f"{kind}_name"]])
            built.add_tensor(fields["arg"]["name"], f"tensor_{number}")
        else:
            raise ValueError(f"takes a {kind}")
    for node in graph["nodes"]:
        built.add_node(node)
    (output,) = graph["outputs"]
    return fx.GraphModule(owner, built.finish(output))


def _tensors(archive: zipfile.ZipFile, root: str, kind: str) -> dict[str, torch.Tensor]:
    """Name of each weight (constant) -> the tensor."""
    folder = f"{root}/data/{kind}"
    config = json.loads(archive.read(f"{folder}/model_{kind}_config.json"))["config"]
    tensors = {}
    for name, fields in config.items():
        if fields["use_pickle"]:
            raise ValueError(f"{name} is a pickle")
        meta = fields["tensor_meta"]
        sizes, strides = ([_only(number, "as_int") for number in meta[key]] for key in ("sizes", "strides"))
        content = bytearray(archive.read(f"{folder}/{fields['path_name']}"))
        dtype = _DTYPES[meta["dtype"]]
        stored = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        tensors[name] = stored.as_strided(sizes, strides, _only(meta["storage_offset"], "as_int"))  # checks the bounds
    return tensors


class _Graph:
    """A graph of torch.fx under construction; its names are its own, whatever the file calls a value."""

    def __init__(self) -> None:
        self._graph = fx.Graph()
        self._values: dict[str, fx.Node] = {}  # by the file's names

    def add_input(self, name: str, number: int) -> None:
        self._values[name] = self._graph.placeholder(f"input_{number}")

    def add_tensor(self, name: str, attribute: str) -> None:
        self._values[name] = self._graph.get_attr(attribute)

    def add_node(self, node: dict[str, Any]) -> None:
        """One operator; an output that is a list, or one of several, is taken apart."""
        function = _function(node["target"])
        inputs = node["inputs"]
        args = tuple(self._value(given["arg"]) for given in inputs if given["kind"] == _POSITIONAL)
        keywords = {given["name"]: self._value(given["arg"]) for given in inputs if given["kind"] != _POSITIONAL}
        result = self._graph.call_function(function, args, keywords)
        outputs = node["outputs"]
        several = outputs[0].get("as_tensors") if len(outputs) == 1 else None
        names = [_name(output) for output in outputs] if several is None else [tensor["name"] for tensor in several]
        if several is None and len(names) == 1:
            self._values[names[0]] = result
            return
        for number, name in enumerate(names):
            self._values[name] = self._graph.call_function(operator.getitem, (result, number))

    def finish(self, output: dict[str, Any]) -> fx.Graph:
        self._graph.output(self._values[_only(output, "as_tensor")["name"]])
        return self._graph

    def _value(self, argument: dict[str, Any]) -> Any:
        ((kind, content),) = argument.items()
        if kind in _NAMES:
            if "as_int" in content:  # a size that is known
                return self._value(content)
            return self._values[content[_NAMES[kind]]]
        if kind == "as_float" and content in _NOT_FINITE:
            return float(content)
        if kind in _PLAIN:
            if not isinstance(content, _PLAIN[kind]):
                raise TypeError(f"{kind} is {content!r}")
            return content
        if kind in _LISTS:
            each = _LISTS[kind]
            return [self._value({each: element} if each else element) for element in content]
        if kind == "as_none":
            return None
        if kind == "as_scalar_type":
            return _DTYPES[content]
        if kind == "as_memory_format":
            return _MEMORY_FORMATS[content]
        if kind == "as_layout" and content == _STRIDED:
            return torch.strided
        if kind == "as_device":
            return torch.device("cpu")
        raise ValueError(f"an argument is {kind}")


def _function(target: str) -> Callable[..., Any]:
    if target in _ON_SIZES:
        return _ON_SIZES[target]
    named = _ATEN.fullmatch(target)
    if named is not None:
        name, overload = named.groups()
        is_private = name.startswith("_") and not name.startswith("__")  # __and__ is public
        is_allowed = name in _ASSERTIONS or not (is_private or name == _READS_FILES)
        aten_operator = getattr(getattr(torch.ops.aten, name, None), overload, None)
        if is_allowed and isinstance(aten_operator, torch._ops.OpOverload):
            return aten_operator
    raise ValueError(f"calls {target}")


def _name(output: dict[str, Any]) -> str:
    ((kind, content),) = output.items()
    name: str = content[_NAMES[kind]]
    return name


def _only(union: dict[str, Any], kind: str) -> Any:
    ((actual_kind, content),) = union.items()
    if actual_kind != kind:
        raise ValueError(f"{actual_kind}, expected {kind}")
    return content
