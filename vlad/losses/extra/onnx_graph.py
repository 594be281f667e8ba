"""An ONNX file as a differentiable torch function: the operators that PP-OCR's recognisers are made of, and no others.

onnxruntime runs such files and gives no gradients. The file is read as what it is, a protocol buffer (field numbers of
onnx.proto3); nothing in it can run code.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlad.utils.errors import UserError

# Field numbers of onnx.proto3.
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 5, 11, 12
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_NAME, ATTRIBUTE_FLOAT, ATTRIBUTE_INT, ATTRIBUTE_TEXT, ATTRIBUTE_TENSOR, ATTRIBUTE_INTS = 1, 2, 3, 4, 5, 8
TENSOR_DIMS, TENSOR_TYPE, TENSOR_FLOATS, TENSOR_INTS, TENSOR_NAME, TENSOR_RAW = 1, 2, 4, 7, 8, 9
DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}


@dataclass(frozen=True)
class Node:
    """One operation: what it reads and writes, by name."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


class OnnxGraph(nn.Module):
    """The graph of a file, frozen. `forward` gives the values of the names that are asked for."""

    def __init__(self, nodes: Sequence[Node], tensors: dict[str, Tensor], inputs: Sequence[str]) -> None:
        super().__init__()
        self.nodes, self.inputs = tuple(nodes), tuple(inputs)
        self.places = {name: f"tensor_{number}" for number, name in enumerate(tensors)}
        for name, value in tensors.items():
            self.register_buffer(self.places[name], value, persistent=False)

    def forward(self, x: Tensor, wanted: str) -> Tensor:
        """The value of the name `wanted` for the graph's one input; what comes after it is not computed."""
        values: dict[str, Any] = {name: getattr(self, place) for name, place in self.places.items()}
        values[self.inputs[0]] = x
        for node in self.nodes:
            if wanted in values:
                break
            operands = [values[name] if name else None for name in node.inputs]
            values[node.outputs[0]] = OPERATORS[node.operator](node.attributes, *operands)
        return values[wanted]


def read_onnx(path: Path) -> OnnxGraph:
    """The graph of an ONNX file. Raises UserError for one with operators that are not known here."""
    model = memoryview(path.read_bytes())
    graph = next(value for number, value in _fields(model) if number == MODEL_GRAPH)
    tensors: dict[str, Tensor] = {}
    nodes: list[Node] = []
    inputs: list[str] = []
    for number, value in _fields(graph):
        if number == GRAPH_INITIALIZER:
            name, tensor = _tensor(value)
            tensors[name] = tensor
        elif number == GRAPH_INPUT:
            inputs.append(_text(next(part for field, part in _fields(value) if field == 1)))
        elif number == GRAPH_NODE:
            node = _node(value)
            if node.operator == "Constant":
                tensors[node.outputs[0]] = node.attributes["value"]
            else:
                nodes.append(node)
    unknown = sorted({node.operator for node in nodes} - OPERATORS.keys())
    if unknown:
        raise UserError(f"{path} has operators that this code does not differentiate: {', '.join(unknown)}.")
    return OnnxGraph(nodes, tensors, [name for name in inputs if name not in tensors])


# --- the file ------------------------------------------------------------------------------------------------


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """The fields of a message: number, and an int or the bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        value: Any
        if kind == 0:
            value, place = _varint(data, place)
        elif kind == 2:
            length, place = _varint(data, place)
            value, place = data[place : place + length], place + length
        else:
            size = {1: 8, 5: 4}[kind]
            value, place = data[place : place + size], place + size
        yield number, value


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _integers(value: Any) -> list[int]:
    """One int64, or a packed run of them."""
    if isinstance(value, int):
        return [_signed(value)]
    found, place = [], 0
    while place < len(value):
        number, place = _varint(value, place)
        found.append(_signed(number))
    return found


def _text(value: memoryview) -> str:
    return bytes(value).decode()


def _tensor(data: memoryview) -> tuple[str, Tensor]:
    shape: list[int] = []
    name, kind, raw = "", 1, b""
    floats: list[float] = []
    integers: list[int] = []
    for number, value in _fields(data):
        if number == TENSOR_DIMS:
            shape += _integers(value)
        elif number == TENSOR_TYPE:
            kind = value
        elif number == TENSOR_NAME:
            name = _text(value)
        elif number == TENSOR_RAW:
            raw = bytes(value)
        elif number == TENSOR_FLOATS:
            floats += np.frombuffer(value, np.float32).tolist()
        elif number == TENSOR_INTS:
            integers += _integers(value)
    dtype: Any = DTYPES[kind]
    values: np.ndarray = np.frombuffer(raw, dtype) if raw else np.array(floats or integers, dtype)
    return name, torch.from_numpy(values.reshape(shape).copy())


def _node(data: memoryview) -> Node:
    inputs, outputs, attributes, operator = [], [], {}, ""
    for number, value in _fields(data):
        if number == NODE_INPUT:
            inputs.append(_text(value))
        elif number == NODE_OUTPUT:
            outputs.append(_text(value))
        elif number == NODE_OPERATOR:
            operator = _text(value)
        elif number == NODE_ATTRIBUTE:
            name, found = _attribute(value)
            attributes[name] = found
    return Node(operator, tuple(inputs), tuple(outputs), attributes)


def _attribute(data: memoryview) -> tuple[str, Any]:
    name, found = "", None
    integers: list[int] = []
    for number, value in _fields(data):
        if number == ATTRIBUTE_NAME:
            name = _text(value)
        elif number == ATTRIBUTE_FLOAT:
            found = struct.unpack("<f", value)[0]
        elif number == ATTRIBUTE_INT:
            found = _signed(value)
        elif number == ATTRIBUTE_TEXT:
            found = _text(value)
        elif number == ATTRIBUTE_TENSOR:
            found = _tensor(value)[1]
        elif number == ATTRIBUTE_INTS:
            integers += _integers(value)
    return name, integers or found


# --- the operators: (attributes, inputs) -> output -----------------------------------------------------------


def _padded(a: dict[str, Any], x: Tensor, value: float = 0.0) -> Tensor:
    """The input with the padding of a convolution or pooling around it: top, left, bottom, right in ONNX."""
    pads = a.get("pads") or [0, 0, 0, 0]
    if a.get("auto_pad") == "SAME_UPPER":
        pads = [0, 0, 0, 0]
        for axis in (0, 1):
            kernel, stride, size = a["kernel_shape"][axis], (a.get("strides") or [1, 1])[axis], x.shape[2 + axis]
            total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            pads[axis], pads[axis + 2] = total // 2, total - total // 2
    top, left, bottom, right = pads
    return F.pad(x, (left, right, top, bottom), value=value) if any(pads) else x


def _convolution(a: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations = a.get("strides") or [1, 1], a.get("dilations") or [1, 1]
    return F.conv2d(_padded(a, x), weight, bias, strides, 0, dilations, a.get("group") or 1)


def _max_pool(a: dict[str, Any], x: Tensor) -> Tensor:
    return F.max_pool2d(
        _padded(a, x, -torch.inf), a["kernel_shape"], a.get("strides") or [1, 1], ceil_mode=bool(a.get("ceil_mode"))
    )


def _average_pool(a: dict[str, Any], x: Tensor) -> Tensor:
    return F.avg_pool2d(
        _padded(a, x), a["kernel_shape"], a.get("strides") or [1, 1], ceil_mode=bool(a.get("ceil_mode"))
    )


def _batch_norm(a: dict[str, Any], x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, eps=a.get("epsilon") or 1e-5)


def _mean(a: dict[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    dimensions = a.get("axes") if axes is None else axes.tolist()
    keeps = a.get("keepdims")
    return x.mean(dim=dimensions, keepdim=keeps is None or bool(keeps))


def _reshape(a: dict[str, Any], x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape.tolist())])


def _squeeze(a: dict[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    dimensions = a.get("axes") if axes is None else axes.tolist()
    return x.squeeze() if dimensions is None else x.squeeze(tuple(dimensions))


def _unsqueeze(a: dict[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    for axis in sorted(a["axes"] if axes is None else axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _slice(
    a: dict[str, Any],
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first = a["starts"] if starts is None else starts.tolist()
    last = a["ends"] if ends is None else ends.tolist()
    along = (a.get("axes") or list(range(len(first)))) if axes is None else axes.tolist()
    by = [1] * len(first) if steps is None else steps.tolist()
    index: list[slice] = [slice(None)] * x.ndim
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _hard_sigmoid(a: dict[str, Any], x: Tensor) -> Tensor:
    return ((a.get("alpha") or 0.2) * x + (0.5 if a.get("beta") is None else a["beta"])).clamp(0, 1)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda a, x, y: x + y,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Concat": lambda a, *parts: torch.cat(parts, dim=a["axis"]),
    "Conv": _convolution,
    "Div": lambda a, x, y: x / y if x.is_floating_point() else x // y,
    "Erf": lambda a, x: torch.erf(x),
    "HardSigmoid": _hard_sigmoid,
    "Identity": lambda a, x: x,
    "MatMul": lambda a, x, y: x @ y,
    "MaxPool": _max_pool,
    "Mul": lambda a, x, y: x * y,
    "Pow": lambda a, x, y: x**y,
    "ReduceMean": _mean,
    "Relu": lambda a, x: x.relu(),
    "Reshape": _reshape,
    "Shape": lambda a, x: torch.tensor(x.shape, device=x.device),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Slice": _slice,
    "Softmax": lambda a, x: x.softmax(dim=a.get("axis", -1)),
    "Sqrt": lambda a, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
}
