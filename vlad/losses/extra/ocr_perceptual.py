"""OCR perceptual loss (AnyText, arXiv 2311.03054, section 3.4): a text recogniser's features of the lines of text.

    L_ocr = mean_b sum_{p in b} alpha_bar_t(b) mean_{T,D} (m_p - m'_p)^2

m_p, m'_p (T D) are the features before the recogniser's last linear layer, of line p cropped from the image and from
the predicted image. alpha_bar_t, because the latter shows no letters yet at high noise. The recogniser, frozen, is
PP-OCR's from the package rapidocr. Letters: B batch, H W pixels, N lines, T positions, D width.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlad.layout.polygons import perspective_coefficients, quad_of
from vlad.losses.extra.onnx_graph import read_onnx
from vlad.types import Layout, Polygon
from vlad.utils.errors import UserError, install_command

LINE_PIXELS = 48  # PP-OCR's input height
WIDTH_PIXELS = (48, 320)  # least and greatest width of a crop
MAX_LINES = 8  # of an image: the first in reading order


class Recogniser(nn.Module):
    """PP-OCR's text recogniser as a differentiable function of crops."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.graph = read_onnx(path or packaged_recogniser())
        # The last linear layer's input.
        self.features = next(node.inputs[0] for node in reversed(self.graph.nodes) if node.operator == "MatMul")
        self.probabilities = self.graph.nodes[-1].outputs[0]

    def forward(self, crops: Tensor) -> Tensor:
        """Crops N 3 48 W, pixels in [-1, 1] -> features N T D."""
        return self.graph(crops.flip(1), self.features)  # trained on BGR

    def read(self, crops: Tensor) -> Tensor:
        """Crops N 3 48 W -> probabilities of characters, N T C."""
        return self.graph(crops.flip(1), self.probabilities)


def packaged_recogniser() -> Path:
    """The recogniser's file inside rapidocr. Raises UserError where rapidocr is not installed or contains none."""
    found = importlib.util.find_spec("rapidocr")
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    files = sorted(file for folder in folders for file in Path(folder, "models").glob("*_rec_*.onnx"))
    if not files:
        raise UserError("losses.ocr_weight: rapidocr's recogniser is not installed; run: pip install rapidocr.")
    return files[0]


def check_recogniser() -> None:
    """Raises UserError where a library that the loss needs is not installed."""
    packaged_recogniser()
    if importlib.util.find_spec("onnx") is None:
        raise UserError(
            "losses.ocr_weight: the OCR perceptual loss needs the library onnx, which is not installed; run:"
            f" {install_command('ocr-loss')}, or set losses.ocr_weight to 0."
        )


def ocr_perceptual_loss(
    recogniser: Recogniser, images: Tensor, predicted: Tensor, layouts: tuple[Layout, ...], alpha_bar: Tensor
) -> Tensor:
    """L_ocr, see above, of pixels B 3 H W in [-1, 1] and alpha_bar_t (B); 0 without lines."""
    lines = [
        (row, line.polygon)
        for row, layout in enumerate(layouts)
        for line in [line for line in layout.lines if line.valid][:MAX_LINES]
    ]
    if not lines:
        return predicted.sum() * 0
    with torch.no_grad():
        wanted = recogniser(crop_lines(images, lines))  # N T D
    errors = (recogniser(crop_lines(predicted, lines)) - wanted).square().mean(dim=(1, 2))  # N
    rows = torch.tensor([row for row, _ in lines], device=errors.device)
    return (alpha_bar.to(errors.device)[rows] * errors).sum() / len(layouts)


def crop_lines(images: Tensor, lines: list[tuple[int, Polygon]]) -> Tensor:
    """Crops lines (row of the batch, polygon) from pixels B 3 H W, upright: N 3 48 W, padded with grey.

    Bilinear and differentiable. Every line keeps its aspect ratio, within WIDTH_PIXELS.
    """
    height, width = images.shape[-2:]
    quads = [np.array(quad_of(polygon)) * (width, height) for _, polygon in lines]
    widths = [_crop_width(quad) for quad in quads]
    crops = []
    for (row, _), quad, columns in zip(lines, quads, widths, strict=True):
        grid = _sampling_grid(quad, columns, width, height).to(images)
        crop = F.grid_sample(images[row][None], grid[None], align_corners=False, padding_mode="border")
        crops.append(F.pad(crop, (0, max(widths) - columns)))
    return torch.cat(crops)


def _crop_width(quad: np.ndarray) -> int:
    top, right, bottom, left = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    wide = LINE_PIXELS * max(top, bottom) / max(left, right, 1e-6)
    return int(np.clip(round(wide), *WIDTH_PIXELS))


def _sampling_grid(quad: np.ndarray, columns: int, width: int, height: int) -> Tensor:
    """The source of each pixel of a crop, in grid_sample's coordinates: 48 W 2."""
    corners = tuple((float(x), float(y)) for x, y in quad)
    coefficients = perspective_coefficients(corners, columns, LINE_PIXELS)
    to_image = np.linalg.inv(np.append(coefficients, 1.0).reshape(3, 3))
    x, y = np.meshgrid(np.arange(columns) + 0.5, np.arange(LINE_PIXELS) + 0.5)
    points = np.stack([x, y, np.ones_like(x)], axis=-1) @ to_image.T
    sources = points[..., :2] / points[..., 2:] / (width, height) * 2 - 1
    return torch.from_numpy(sources.astype(np.float32))
