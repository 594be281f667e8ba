"""OCR perceptual loss: the recogniser against onnxruntime, the crops against OpenCV, the loss against its formula."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from vlad.layout.glyph_map import render_glyph_map
from vlad.layout.line_crops import crop_line
from vlad.layout.polygons import box_polygon
from vlad.losses.extra.ocr_perceptual import (
    Recogniser,
    check_recogniser,
    crop_lines,
    ocr_perceptual_loss,
    packaged_recogniser,
)
from vlad.losses.extra.onnx_graph import read_onnx
from vlad.types import Layout, TextLine
from vlad.utils.errors import UserError

UPRIGHT = TextLine("HOUSE", box_polygon(0.1, 0.2, 0.9, 0.5))
TILTED = TextLine("CAB", ((0.2, 0.5), (0.7, 0.6), (0.65, 0.9), (0.15, 0.8)))


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser()


def images(*layouts: Layout) -> torch.Tensor:
    """Glyph maps as pixels B 3 96 96 in [-1, 1]."""
    maps = np.stack([render_glyph_map(layout, 96, 96) for layout in layouts])
    return torch.from_numpy(maps)[:, None].expand(-1, 3, -1, -1) * 2 - 1


@torch.no_grad()
def test_the_graph_computes_what_onnxruntime_does(recogniser: Recogniser) -> None:
    crops = torch.rand(2, 3, 48, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    session = onnxruntime.InferenceSession(str(packaged_recogniser()))
    wanted = session.run(None, {session.get_inputs()[0].name: crops.flip(1).numpy()})[0]
    found = recogniser.read(crops)
    torch.testing.assert_close(found, torch.from_numpy(wanted), atol=2e-5, rtol=1e-3)
    # The features are what the last linear layer reads.
    features = recogniser(crops)
    last = [node for node in recogniser.graph.nodes if node.operator == "MatMul"][-1]
    bias = recogniser.graph.nodes[-3]
    tensors = {name: getattr(recogniser.graph, buffer) for name, buffer in recogniser.graph.buffer_names.items()}
    scores = features @ tensors[last.inputs[1]] + tensors[bias.inputs[1]]
    torch.testing.assert_close(scores.softmax(dim=-1), found, atol=1e-5, rtol=1e-3)


def test_an_operator_without_a_differentiable_version_is_named(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Acosh", ["x"], ["y"])], "graph", values[:1], values[1:])
    onnx.save(helper.make_model(graph), tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"a\.onnx has operators .*: Acosh"):
        read_onnx(tmp_path / "a.onnx")


def test_a_missing_library_is_refused_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_recogniser()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"losses\.ocr_weight: .* pip install 'vlad-diffusion\[ocr-loss\]'"):
        check_recogniser()


def test_lines_are_cropped_upright() -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    image = torch.nn.functional.avg_pool2d(image, 5, 1, 2)  # smooth: sizes differ
    for line in (UPRIGHT, TILTED):
        found = crop_lines(image, [(0, line.polygon)])[0].permute(1, 2, 0).numpy()
        large = torch.nn.functional.interpolate(image, scale_factor=4, mode="bilinear")[0].permute(1, 2, 0)
        wanted = crop_line(large.numpy().copy(), line.polygon)
        assert wanted is not None
        rows = np.linspace(0, wanted.shape[0] - 1, found.shape[0]).round().astype(int)
        columns = np.linspace(0, wanted.shape[1] - 1, found.shape[1]).round().astype(int)
        assert np.abs(found - wanted[rows][:, columns]).mean() < 0.02
    both = crop_lines(image, [(0, UPRIGHT.polygon), (0, TILTED.polygon)])
    assert both.shape == (2, 3, 48, crop_lines(image, [(0, UPRIGHT.polygon)]).shape[-1])


def test_the_loss_is_the_formula_and_has_a_gradient(recogniser: Recogniser) -> None:
    layouts = (Layout((UPRIGHT, TILTED)), Layout(()))
    wanted = images(*layouts)
    predicted = (wanted + 0.1 * torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))).requires_grad_()
    shares = torch.tensor([0.7, 0.9])
    loss = ocr_perceptual_loss(recogniser, wanted, predicted, layouts, shares)
    lines = [(0, UPRIGHT.polygon), (0, TILTED.polygon)]
    with torch.no_grad():
        errors = (recogniser(crop_lines(predicted, lines)) - recogniser(crop_lines(wanted, lines))).square()
    assert float(loss.detach()) == pytest.approx(0.7 * float(errors.mean(dim=(1, 2)).sum()) / 2, rel=1e-4)
    loss.backward()
    assert predicted.grad is not None
    assert predicted.grad[0].abs().max() > 0
    assert predicted.grad[1].abs().max() == 0  # no line, nothing to read


@torch.no_grad()
def test_other_letters_cost_more_than_noise_and_illegible_lines_nothing(recogniser: Recogniser) -> None:
    layout = Layout((UPRIGHT,))
    wanted, one = images(layout), torch.ones(1)
    noisy = wanted + 0.05 * torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3))
    misspelt = images(Layout((TextLine("HORSE", UPRIGHT.polygon),)))
    near, far = (ocr_perceptual_loss(recogniser, wanted, other, (layout,), one) for other in (noisy, misspelt))
    assert far > 2 * near
    unreadable = Layout((TextLine("HOUSE", UPRIGHT.polygon, valid=False),))
    assert ocr_perceptual_loss(recogniser, wanted, misspelt, (unreadable,), one) == 0
