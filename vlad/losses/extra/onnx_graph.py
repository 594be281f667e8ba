"""An ONNX graph as a differentiable torch module, for the operators that PP-OCR's recognisers consist of.

onnxruntime executes such files but computes no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlad.utils.errors import UserError


@dataclass(frozen=True)
class Node:
    """One operation, with the names of the values that it reads and writes."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


class OnnxGraph(nn.Module):
    """A frozen graph with one input. `forward` computes the value of any name in it."""

    def __init__(self, nodes: Sequence[Node], tensors: dict[str, Tensor], input_name: str) -> None:
        super().__init__()
        self.nodes, self.input_name = tuple(nodes), input_name
        # Names in a graph may hold dots, which a buffer's name may not.
        self.buffer_names = {name: f"tensor_{number}" for number, name in enumerate(tensors)}
        for name, value in tensors.items():
            self.register_buffer(self.buffer_names[name], value, persistent=False)

    def forward(self, x: Tensor, wanted: str) -> Tensor:
        """The value named `wanted` for the input x; nodes after it are not computed."""
        values: dict[str, Any] = {name: getattr(self, buffer) for name, buffer in self.buffer_names.items()}
        values[self.input_name] = x
        for node in self.nodes:
            if wanted in values:
                break
            operands = [values[name] if name else None for name in node.inputs]
            values[node.outputs[0]] = OPERATORS[node.operator](node.attributes, *operands)
        return values[wanted]


def read_onnx(path: Path) -> OnnxGraph:
    """The graph of an ONNX file. Raises UserError for an operator that is missing from OPERATORS."""
    import onnx  # of an optional extra
    from onnx import helper, numpy_helper

    def tensor(proto: onnx.TensorProto) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(proto).copy())

    def attribute(proto: onnx.AttributeProto) -> Any:
        value = helper.get_attribute_value(proto)
        if isinstance(value, onnx.TensorProto):
            return tensor(value)
        return value.decode() if isinstance(value, bytes) else value

    graph = onnx.load(path).graph
    tensors = {proto.name: tensor(proto) for proto in graph.initializer}
    nodes: list[Node] = []
    for proto in graph.node:
        attributes = {entry.name: attribute(entry) for entry in proto.attribute}
        if proto.op_type == "Constant":
            tensors[proto.output[0]] = attributes["value"]
        else:
            nodes.append(Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes))
    unknown = sorted({node.operator for node in nodes} - OPERATORS.keys())
    if unknown:
        raise UserError(f"{path} has operators without a differentiable version here: {', '.join(unknown)}.")
    (input_name,) = (value.name for value in graph.input if value.name not in tensors)
    return OnnxGraph(nodes, tensors, input_name)


# --- operators: (attributes, inputs) -> output ---------------------------------------------------------------


def _padded(a: dict[str, Any], x: Tensor, value: float = 0.0) -> Tensor:
    """The input with a convolution's or pooling's padding around it; ONNX orders it top, left, bottom, right."""
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
