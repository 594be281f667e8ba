"""Panels of posters: plates, labels, tickets, awnings, notes and frames, painted under the text."""

from __future__ import annotations

import cv2
import numpy as np

from vlad.data.posters.scenes import Form, Panel

AWNING_STRIPES = 8


def paint_panel(canvas: np.ndarray, panel: Panel, colour: np.ndarray, rng: np.random.Generator) -> None:
    """Paints a panel of a colour (RGB) into the canvas (H W 3, float32), in place."""
    size = len(canvas)
    left, top, right, bottom = (round(value * size) for value in panel.box)
    if right - left < 2 or bottom - top < 2:
        return
    mask = panel_mask(panel.form, right - left, bottom - top, size)
    x0, y0, x1, y1 = max(0, left), max(0, top), min(size, right), min(size, bottom)
    part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    if panel.form == "note":  # its shadow
        canvas[y0 + 2 : y1 + 2, x0 + 2 : x1 + 2] *= 0.78
    window = canvas[y0:y1, x0:x1]
    _blend(window, mask[part], colour)
    if panel.form in ("rounded", "ellipse") and rng.random() < 0.5:
        rim = mask - cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=max(1, size // 96))
        _blend(window, rim[part], colour * 0.6 + (0 if colour.mean() > 128 else 100))
    if panel.form == "note":  # and its pin
        pin = (x0 + x1) // 2, y0 + max(2, size // 40)
        cv2.circle(canvas, pin, max(1, size // 60), (200.0, 40.0, 40.0), -1, cv2.LINE_AA)


def _blend(window: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    window += mask[..., None].astype(np.float32) / 255 * (colour - window)


def panel_mask(form: Form, width: int, height: int, size: int) -> np.ndarray:
    """The coverage (uint8) of a panel of `width` by `height` pixels on an image of `size`."""
    mask = np.zeros((height, width), dtype=np.uint8)
    if form == "ellipse":
        axes = width // 2 - 1, height // 2 - 1
        return cv2.ellipse(mask, (width // 2, height // 2), axes, 0, 0, 360, 255, -1, cv2.LINE_AA)
    if form == "frame":
        return cv2.rectangle(mask, (0, 0), (width - 1, height - 1), 255, max(1, round(size / 64)))
    if form == "rounded":
        return _rounded(mask, max(2, round(0.05 * size)))
    mask[:] = 255
    if form == "awning":
        for number in range(1, AWNING_STRIPES, 2):
            mask[:, round(number * width / AWNING_STRIPES) : round((number + 1) * width / AWNING_STRIPES)] = 0
    elif form == "ticket":
        for x in (0, width - 1):  # notches
            cv2.circle(mask, (x, height // 2), max(2, round(0.05 * size)), 0, -1, cv2.LINE_AA)
        for y in range(2, height - 1, max(3, size // 26)):  # perforation
            mask[y : y + max(1, size // 64), round(0.07 * size)] = 90
    return mask


def _rounded(mask: np.ndarray, radius: int) -> np.ndarray:
    height, width = mask.shape
    radius = min(radius, (height - 1) // 2, (width - 1) // 2)
    cv2.rectangle(mask, (radius, 0), (width - 1 - radius, height - 1), 255, -1)
    cv2.rectangle(mask, (0, radius), (width - 1, height - 1 - radius), 255, -1)
    for x in (radius, width - 1 - radius):
        for y in (radius, height - 1 - radius):
            cv2.circle(mask, (x, y), radius, 255, -1, cv2.LINE_AA)
    return mask
