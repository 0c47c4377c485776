"""The five test domains beyond natural movies, each with the parameters that made it.

A stimulus is a video [T, H, W] uint8 on a grey screen and a list of its events, each a JSON object
with `start` and `stop` (frames, stop excluded). Positions are degrees from the monitor's centre, x
to the right and y down; directions are degrees from +x towards +y, so 0 moves right and 90 down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import fft

from data_prep.simulator.movies import GREY, natural_image
from data_prep.simulator.textures import OVERSAMPLE, frequencies

Event = dict[str, Any]


@dataclass(frozen=True)
class Screen:
    """What a stimulus is drawn on: pixels, frame rate in Hz, degrees of visual angle a pixel."""

    height: int
    width: int
    frame_rate: float
    degrees_per_pixel: float

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Degrees right of [1, W] and below [H, 1] the monitor's centre, of pixel centres."""
        x = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2)[None, :]
        y = (np.arange(self.height, dtype=np.float32) + 0.5 - self.height / 2)[:, None]
        return x * self.degrees_per_pixel, y * self.degrees_per_pixel

    def blank(self, frames: int) -> np.ndarray:
        """A grey contrast video: zeros [frames, H, W] float32."""
        return np.zeros((frames, self.height, self.width), np.float32)

    def position(self, rng: np.random.Generator, margin: float) -> tuple[float, float]:
        """A random point (x, y), degrees, in the central `margin` of the monitor."""
        half = 0.5 * margin * self.degrees_per_pixel
        return (
            float(rng.uniform(-1, 1) * half * self.width),
            float(rng.uniform(-1, 1) * half * self.height),
        )


def to_pixels(contrast: np.ndarray) -> np.ndarray:
    """Grey levels uint8 of contrasts, where -1 is black, 0 grey and 1 white."""
    return np.clip(np.rint(GREY + GREY * contrast), 0, 255).astype(np.uint8)


def to_contrast(video: np.ndarray) -> np.ndarray:
    """Contrast float32 of a video: uint8 grey levels are scaled, floats taken as they are."""
    if video.dtype == np.uint8:
        return (video.astype(np.float32) - np.float32(GREY)) / np.float32(GREY)
    return video.astype(np.float32, copy=False)


def _blocks(frames: int, screen: Screen, seconds: float) -> list[tuple[int, int]]:
    """The frames cut into blocks of `seconds`; a last stub joins the block before it."""
    length = max(1, round(seconds * screen.frame_rate))
    starts = list(range(0, max(1, frames - length // 2), length))
    return list(zip(starts, [*starts[1:], frames], strict=True))


def grating(
    screen: Screen, frames: int, direction: float, sf: float, tf: float, phase: float = 0.0
) -> np.ndarray:
    """Contrast [frames, H, W] of a full-field drifting sinusoid.

    Args:
        screen: what it is drawn on.
        frames: T.
        direction: of motion, degrees from +x towards +y.
        sf: spatial frequency, cycles per degree.
        tf: temporal frequency, Hz.
        phase: radians.
    """
    x, y = screen.grid()
    angle = np.radians(direction)
    space = 2 * np.pi * sf * (x * np.cos(angle) + y * np.sin(angle))
    time = 2 * np.pi * tf * np.arange(frames, dtype=np.float32) / screen.frame_rate
    return np.cos(space[None] - time[:, None, None] + phase, dtype=np.float32)


def natural_images(
    frames: int, screen: Screen, rng: np.random.Generator
) -> tuple[np.ndarray, list[Event]]:
    """Naturalistic still images of 0.5 s, with 0.2 s of grey between them."""
    video = np.full((frames, screen.height, screen.width), 128, np.uint8)
    shown = round(0.5 * screen.frame_rate)
    events = []
    for number, (start, stop) in enumerate(_blocks(frames, screen, 0.7)):
        stop = min(stop, start + shown)
        video[start:stop] = natural_image(screen.height, screen.width, rng)
        events.append({"start": start, "stop": stop, "image": number})
    return video, events


def drifting_gabors(
    frames: int, screen: Screen, rng: np.random.Generator
) -> tuple[np.ndarray, list[Event]]:
    """Drifting gratings in a Gaussian window; every 0.8 s a new one elsewhere."""
    contrast = screen.blank(frames)
    x, y = screen.grid()
    events = []
    for start, stop in _blocks(frames, screen, 0.8):
        direction = float(rng.integers(16) * 22.5)
        sf = float(rng.choice([0.02, 0.03, 0.045, 0.07]))
        tf = float(rng.choice([1.0, 2.0, 4.0, 6.0]))
        phase = float(rng.uniform(0, 2 * np.pi))
        sigma = float(rng.uniform(12, 20))
        cx, cy = screen.position(rng, 0.6)
        window = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
        contrast[start:stop] = window * grating(screen, stop - start, direction, sf, tf, phase)
        events.append(
            {"start": start, "stop": stop, "direction": direction, "spatial_frequency": sf}
            | {"temporal_frequency": tf, "phase": phase, "sigma": sigma, "x": cx, "y": cy}
        )
    return to_pixels(contrast), events


def gaussian_dots(
    frames: int, screen: Screen, rng: np.random.Generator
) -> tuple[np.ndarray, list[Event]]:
    """A black or white Gaussian dot on grey; every 0.3 s a new one elsewhere."""
    contrast = screen.blank(frames)
    x, y = screen.grid()
    events = []
    for start, stop in _blocks(frames, screen, 0.3):
        sign = int(rng.choice([-1, 1]))
        sigma = float(rng.uniform(5, 9))
        cx, cy = screen.position(rng, 0.8)
        contrast[start:stop] = sign * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
        events.append(
            {"start": start, "stop": stop, "sign": sign, "sigma": sigma, "x": cx, "y": cy}
        )
    return to_pixels(contrast), events


def pink_noise(
    frames: int, screen: Screen, rng: np.random.Generator
) -> tuple[np.ndarray, list[Event]]:
    """Oriented 1/f noise that drifts across its orientation, in one of 16 directions per block.

    Blocks last 0.9 s. Each block is a new pattern whose spectrum is confined to a band of
    orientations (von Mises, kappa 6) around that of the motion.
    """
    contrast = screen.blank(frames)
    rows_in = fft.next_fast_len(2 * screen.height * OVERSAMPLE, real=True)
    columns_in = fft.next_fast_len(2 * screen.width * OVERSAMPLE, real=True)
    radius = frequencies(rows_in, columns_in)
    radius[0, 0] = 1 / max(rows_in, columns_in)
    angle = np.arctan2(fft.fftfreq(rows_in)[:, None], fft.rfftfreq(columns_in)[None, :])
    amplitude = radius**-1 * np.exp(-0.5 * (radius * OVERSAMPLE / 0.3) ** 4)
    amplitude[0, 0] = 0
    events = []
    for start, stop in _blocks(frames, screen, 0.9):
        direction = float(rng.integers(16) * 22.5)
        speed = float(rng.choice([20.0, 40.0, 60.0]))
        heading = np.radians(direction)
        spectrum = amplitude * np.exp(3 * (np.cos(2 * (angle - heading)) - 1))
        phases = rng.uniform(0, 2 * np.pi, spectrum.shape)
        pattern = fft.irfft2(spectrum * np.exp(1j * phases), s=(rows_in, columns_in))
        pattern = (0.35 * pattern / pattern.std()).astype(np.float32)
        steps = np.arange(stop - start) / screen.frame_rate * speed / screen.degrees_per_pixel
        rows = np.arange(screen.height)[None, :] - steps[:, None] * np.sin(heading)
        columns = np.arange(screen.width)[None, :] - steps[:, None] * np.cos(heading)
        rows = np.floor(rows * OVERSAMPLE).astype(np.intp) % rows_in
        columns = np.floor(columns * OVERSAMPLE).astype(np.intp) % columns_in
        contrast[start:stop] = pattern[rows[:, :, None], columns[:, None, :]]
        events.append({"start": start, "stop": stop, "direction": direction, "speed": speed})
    return to_pixels(contrast), events


def random_dots(
    frames: int, screen: Screen, rng: np.random.Generator
) -> tuple[np.ndarray, list[Event]]:
    """A random-dot kinematogram: black and white dots, coherence and direction per block of 1 s.

    A dot lives 10 frames. In each frame a dot is moved along the block's direction with the
    probability `coherence` and otherwise along its own random one, a variant of Newsome and Pare
    (J. Neurosci. 8, 2201-2211, 1988).
    """
    contrast = screen.blank(frames)
    x, y = screen.grid()
    extent = np.array([screen.width, screen.height]) * screen.degrees_per_pixel
    count = max(1, round(extent[0] * extent[1] / 160))
    # Receptive fields are some 20 degrees wide: much smaller dots would hardly drive them. A dot
    # also needs to span a pixel or so, or its size would flicker as it moves.
    sigma = max(2.5, 0.6 * screen.degrees_per_pixel)
    place = rng.uniform(-0.5, 0.5, (count, 2)) * extent
    sign = rng.choice([-1.0, 1.0], count).astype(np.float32)
    age = rng.integers(0, 10, count)
    own = rng.uniform(0, 2 * np.pi, count)
    events = []
    for start, stop in _blocks(frames, screen, 1.0):
        direction = float(rng.integers(16) * 22.5)
        coherence = float(rng.choice([0.0, 0.25, 0.5, 1.0], p=[0.1, 0.2, 0.3, 0.4]))
        speed = float(rng.choice([25.0, 50.0]))
        events.append(
            {"start": start, "stop": stop, "direction": direction, "coherence": coherence}
            | {"speed": speed, "dots": count, "sigma": sigma}
        )
        for frame in range(start, stop):
            heading = np.where(rng.random(count) < coherence, np.radians(direction), own)
            place += np.stack([np.cos(heading), np.sin(heading)], 1) * speed / screen.frame_rate
            age += 1
            reborn = age >= 10
            place[reborn] = rng.uniform(-0.5, 0.5, (int(reborn.sum()), 2)) * extent
            own[reborn] = rng.uniform(0, 2 * np.pi, int(reborn.sum()))
            age[reborn] = 0
            place = (place + extent / 2) % extent - extent / 2
            across = np.exp(-((x - place[:, :1]) ** 2) / (2 * sigma**2))
            down = np.exp(-((y.T - place[:, 1:]) ** 2) / (2 * sigma**2))
            # A sum over dots of separable bumps is one matrix product.
            contrast[frame] = (down * sign[:, None]).T.astype(np.float32) @ across.astype(
                np.float32
            )
    return to_pixels(contrast), events


#: How to make each domain's stimulus.
DOMAIN_STIMULI: dict[
    str, Callable[[int, Screen, np.random.Generator], tuple[np.ndarray, list[Event]]]
] = {
    "natural_image": natural_images,
    "drifting_gabor": drifting_gabors,
    "gaussian_dots": gaussian_dots,
    "pink_noise": pink_noise,
    "random_dots": random_dots,
}
