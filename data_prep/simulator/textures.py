"""Still images with the statistics of natural ones: edges, occlusion and a 1/f spectrum."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import fft

#: Samples of a texture per monitor pixel, so that sub-pixel motion needs no interpolation.
OVERSAMPLE = 3


def frequencies(height: int, width: int) -> np.ndarray:
    """Radial spatial frequency of each `rfft2` bin, cycles per sample [height, width // 2 + 1]."""
    fy = fft.fftfreq(height)[:, None]
    fx = fft.rfftfreq(width)[None, :]
    return np.hypot(fy, fx).astype(np.float32)


@lru_cache(maxsize=32)
def _falloff(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm of the radial frequency, and what the monitor's pixels let pass, of each bin."""
    radius = frequencies(height, width)
    radius[0, 0] = 1 / max(height, width)
    # The pixel's Nyquist frequency is 0.5 / OVERSAMPLE cycles per sample.
    return np.log(radius), np.exp(-0.5 * (radius * OVERSAMPLE / 0.35) ** 4)


def leaves(height: int, width: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """A periodic "dead leaves" image [height, width]: occluding ellipses with power-law sizes.

    The model of occlusion of Lee, Mumford and Huang, Int. J. Comput. Vis. 41, 35-59 (2001): radii
    with density r^-3 make an image whose statistics do not change with scale.
    """
    image = np.full((height, width), rng.uniform(-1, 1), np.float32)
    smallest, largest = 0.03 * height, min(0.45 * height, 0.45 * width)
    quantile = rng.random(count)
    radii = 1 / np.sqrt(smallest**-2 + quantile * (largest**-2 - smallest**-2))
    # Large leaves first, in part: otherwise a late large one hides everything.
    radii = radii[np.argsort(-radii * rng.uniform(0.3, 1, count))]
    for number, radius in enumerate(radii.tolist()):
        if number % 8 == 0:
            # Leaves lie whole within the image; rolling it makes it periodic without a seam.
            image = np.roll(image, rng.integers((height, width)), axis=(0, 1))
        half = int(radius) + 1
        top = int(rng.integers(0, max(1, height - 2 * half)))
        left = int(rng.integers(0, max(1, width - 2 * half)))
        patch = image[top : top + 2 * half, left : left + 2 * half]
        y = np.arange(-half, patch.shape[0] - half, dtype=np.float32)[:, None]
        x = np.arange(-half, patch.shape[1] - half, dtype=np.float32)[None, :]
        aspect, angle = rng.uniform(0.4, 1), rng.uniform(0, np.pi)
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        along = cos * x + sin * y
        across = (cos * y - sin * x) * (1 / aspect)
        # A gradient of shading across the leaf, as of a lit surface.
        shade = rng.uniform(-1, 1) + (rng.uniform(-0.5, 0.5) / radius) * along
        np.copyto(patch, shade, where=along**2 + across**2 <= radius**2)
    return image


def texture(
    height: int, width: int, rng: np.random.Generator, *, rough: bool = False
) -> np.ndarray:
    """A periodic texture [height, width] float32 with mean 0 and standard deviation 1.

    A mixture of dead leaves and of noise with a 1/f amplitude spectrum (Field, J. Opt. Soc. Am. A
    4, 2379-2394, 1987), without content beyond what the monitor's pixels can show.

    Args:
        height: samples, `OVERSAMPLE` per pixel.
        width: samples.
        rng: its generator.
        rough: noise only, as of grass or water.
    """
    log_radius, passed = _falloff(height, width)
    exponent = rng.uniform(0.9, 1.3)
    noise = rng.standard_normal((*log_radius.shape, 2), np.float32).view(np.complex64)[..., 0]
    noise *= np.exp(np.float32(-exponent) * log_radius)
    noise[0, 0] = 0
    spectrum = noise * (1 / np.linalg.norm(noise))
    if not rough:
        image = leaves(height, width, int(rng.integers(70, 150)), rng)
        structure = fft.rfft2(image)
        structure[0, 0] = 0
        structure *= 1 / np.linalg.norm(structure)
        spectrum = structure + np.float32(rng.uniform(0.15, 0.6)) * spectrum
    image = fft.irfft2(spectrum * passed, s=(height, width))
    return image / image.std()
