"""Naturalistic movies made procedurally: textures seen by a moving camera, objects, cuts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft

from data_prep.simulator.textures import OVERSAMPLE, texture

GREY = 127.5


def natural_movie(
    frames: int, height: int, width: int, frame_rate: float, rng: np.random.Generator
) -> np.ndarray:
    """A movie [frames, height, width] uint8 of scenes of 1.5-5 s joined by cuts.

    In each scene a textured background passes before a camera that pans and zooms, sometimes
    seen through a second transparent layer; up to three textured objects move across, occluding it
    and one another; contrast, mean luminance and slow changes of lighting differ between scenes.
    """
    movie = np.empty((frames, height, width), np.uint8)
    start = 0
    while start < frames:
        length = max(1, round(rng.uniform(1.5, 5.0) * frame_rate))
        if frames - (start + length) < 0.5 * frame_rate:
            length = frames - start
        movie[start : start + length] = _scene(length, height, width, frame_rate, rng)
        start += length
    return movie


def natural_image(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A naturalistic still image [height, width] uint8: one moment of a scene."""
    return _scene(1, height, width, 30.0, rng)[0]


def _scene(
    frames: int, height: int, width: int, frame_rate: float, rng: np.random.Generator
) -> np.ndarray:
    seconds = np.arange(frames, dtype=np.float32) / frame_rate
    view = _layer(seconds, height, width, rng, rough=rng.random() < 0.2)
    if rng.random() < 0.2:
        weight = rng.uniform(0.3, 0.7)
        view = (1 - weight) * view + weight * _layer(seconds, height, width, rng, rough=True)
    for _ in range(rng.choice(4, p=[0.2, 0.35, 0.3, 0.15])):
        _draw_object(view, seconds, rng)
    lighting = rng.uniform(0, 15) * np.sin(
        2 * np.pi * (rng.uniform(0.1, 0.5) * seconds + rng.random())
    )
    brightness = GREY + rng.uniform(-25, 20) + lighting
    view *= rng.uniform(28, 62)
    view += brightness[:, None, None].astype(np.float32)
    return np.clip(np.rint(view, out=view), 0, 255, out=view).astype(np.uint8)


def _layer(
    seconds: np.ndarray, height: int, width: int, rng: np.random.Generator, *, rough: bool
) -> np.ndarray:
    """A panning and zooming view [T, H, W] of a texture that repeats beyond its edges."""
    rows_in = fft.next_fast_len(2 * height * OVERSAMPLE, real=True)
    columns_in = fft.next_fast_len(round(1.6 * width) * OVERSAMPLE, real=True)
    canvas = texture(rows_in, columns_in, rng, rough=rough)
    x, y = _path(seconds, rng, speed=0.12 * width)
    zoom = rng.uniform(0.8, 1.2) * np.exp(
        rng.choice([0.0, 1.0]) * rng.uniform(-0.12, 0.12) * (seconds - seconds.mean())
    )
    zoom = np.clip(zoom, 0.6, 1.5)[:, None]
    i = np.arange(height, dtype=np.float32) - height / 2
    j = np.arange(width, dtype=np.float32) - width / 2
    rows = np.floor((i * zoom + y[:, None]) * OVERSAMPLE).astype(np.intp) + rng.integers(rows_in)
    columns = np.floor((j * zoom + x[:, None]) * OVERSAMPLE).astype(np.intp)
    columns += rng.integers(columns_in)
    rows %= rows_in
    columns %= columns_in
    # Flat indices: `take` is several times faster than indexing by two broadcast arrays.
    return canvas.ravel().take(rows[:, :, None] * columns_in + columns[:, None, :])


def _path(
    seconds: np.ndarray, rng: np.random.Generator, speed: float
) -> tuple[np.ndarray, np.ndarray]:
    """A smooth path in pixels: constant velocity, a slow sway and, at times, standing still."""
    if rng.random() < 0.1:
        return np.zeros_like(seconds), np.zeros_like(seconds)
    velocity = speed * rng.gamma(1.5, 0.7)
    heading = rng.uniform(0, 2 * np.pi)
    sway = (
        rng.uniform(0, 0.4)
        * speed
        * np.sin(2 * np.pi * (rng.uniform(0.2, 0.8) * seconds + rng.random()))
    )
    x = velocity * np.cos(heading) * seconds - sway * np.sin(heading)
    y = 0.7 * velocity * np.sin(heading) * seconds + sway * np.cos(heading)
    return x, y


@dataclass(frozen=True)
class _Sprite:
    """An object's texture and opacity at each sub-pixel phase: [phase y][phase x] -> [h, w]."""

    values: list[list[np.ndarray]]
    opacities: list[list[np.ndarray]]


def _sprite(radius: float, rng: np.random.Generator) -> _Sprite:
    """A textured blob of `radius` pixels whose outline is a circle with random harmonics."""
    size = OVERSAMPLE * (2 * int(np.ceil(1.35 * radius)) + 2)
    size += -size % OVERSAMPLE
    axis = (np.arange(size, dtype=np.float32) - size / 2) / OVERSAMPLE
    y, x = axis[:, None], axis[None, :]
    angle = np.arctan2(y, x)
    outline = 1.0 + sum(
        rng.uniform(0, 0.18) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5)
    )
    distance = np.hypot(x * rng.uniform(0.75, 1.3), y)
    opacity = np.clip(radius * outline - distance + 0.5, 0, 1).astype(np.float32)
    value = 0.7 * texture(size, size, rng, rough=True) + rng.uniform(-2, 2)
    value -= rng.uniform(0, 0.8) * (y + 0.5 * x) / radius  # shading from above
    steps = range(OVERSAMPLE)

    def phases(image: np.ndarray) -> list[list[np.ndarray]]:
        return [
            [np.ascontiguousarray(image[a::OVERSAMPLE, b::OVERSAMPLE]) for b in steps]
            for a in steps
        ]

    return _Sprite(phases(value * opacity), phases(1 - opacity))


def _draw_object(view: np.ndarray, seconds: np.ndarray, rng: np.random.Generator) -> None:
    """Move an object across `view` [T, H, W], in place."""
    _, height, width = view.shape
    radius = height * rng.uniform(0.08, 0.3)
    sprite = _sprite(radius, rng)
    size = sprite.values[0][0].shape[0]
    middle = rng.uniform([0.15 * width, 0.15 * height], [0.85 * width, 0.85 * height])
    x, y = _path(seconds - seconds.mean(), rng, speed=0.18 * width)
    x, y = x + middle[0] - size / 2, y + middle[1] - size / 2
    for frame, left, top in zip(view, x.tolist(), y.tolist(), strict=True):
        i, j = int(np.ceil(top)), int(np.ceil(left))
        r0, r1 = max(0, -i), min(size, height - i)
        c0, c1 = max(0, -j), min(size, width - j)
        if r0 >= r1 or c0 >= c1:
            continue
        a, b = int((i - top) * OVERSAMPLE), int((j - left) * OVERSAMPLE)
        region = frame[i + r0 : i + r1, j + c0 : j + c1]
        region *= sprite.opacities[a][b][r0:r1, c0:c1]
        region += sprite.values[a][b][r0:r1, c0:c1]
