"""Contrast of colours, as WCAG 2.2 measures it, and the named colours that stand out on a background."""

from __future__ import annotations

import numpy as np

from vlad.data.posters.backgrounds import PALETTE

# Above WCAG's 3 for large text: many letters here are small.
MINIMUM_CONTRAST = 3.6


def relative_luminance(colours: np.ndarray) -> np.ndarray:
    """WCAG's relative luminance of sRGB colours (... 3, 0..255), 0..1."""
    channels = colours / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ np.array((0.2126, 0.7152, 0.0722))


LUMINANCES = {name: float(relative_luminance(np.array(colour, dtype=float))) for name, colour in PALETTE.items()}


def contrast(one: float, other: float) -> float:
    """WCAG's contrast of two luminances, 1 to 21."""
    darker, lighter = sorted((one, other))
    return (lighter + 0.05) / (darker + 0.05)


def contrasts_with(pixels: np.ndarray) -> dict[str, float]:
    """The contrast of every named colour with pixels (n 3, 0..255): with their dark or their light ones, the lesser."""
    luminances = np.sort(relative_luminance(pixels))
    tenth = len(luminances) // 10
    low, high = float(luminances[tenth]), float(luminances[-1 - tenth])
    return {name: min(contrast(own, low), contrast(own, high)) for name, own in LUMINANCES.items()}


def outline_of(colour: str) -> str:
    """Black or white, whichever stands out against a named colour."""
    return "black" if LUMINANCES[colour] > 0.3 else "white"
