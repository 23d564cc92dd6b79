"""Colours as people with and without colour blindness see them."""

import re

import numpy as np

# Red, green and blue light as those see it who lack the cones for red, for green, or none (Machado et al. 2009), and its CIE XYZ.
SIGHT = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "normal": np.eye(3),
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])


def lights(colours: list[str]) -> np.ndarray:
    """Linear red, green and blue, [N, 3], of colours such as ``rgb(0, 114, 178)``."""
    c = np.array([[int(n) for n in re.findall(r"\d+", colour)[:3]] for colour in colours]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def apart(colours: list[str], sight: str) -> np.ndarray:
    """CIELAB distance of each two colours as seen with ``sight``, [N, N]."""
    seen = np.clip(lights(colours) @ np.array(SIGHT[sight]).T, 0, 1) @ XYZ.T / XYZ.sum(1)
    f = np.where(seen > 0.008856, np.cbrt(seen), 7.787 * seen + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)
    return np.linalg.norm(lab[:, None] - lab[None], axis=-1)
