"""The eye: where it points, what the camera sees of it, and what falls on its retina.

Geometry. The monitor is taken as a spherical patch: its pixels are square and each spans the same
visual angle, `monitor_degrees / width`. A point of the monitor lies x degrees right of and y
degrees below the monitor's centre. The gaze g = (gx, gy), in the same degrees, is the point of the
monitor that the eye's axis meets; a receptive field centred at c on the retina (degrees from the
eye's axis) is then centred at c + g on the monitor. Truth gives c, so c is also where it lies at
gaze zero.

The eye camera gives the pupil's centre p = (px, py) in camera pixels, and

    g = gain @ (p - centre),

with a 2 x 2 `gain` (degrees per camera pixel) and a `centre` that are each mouse's own: the camera
stands at another angle and distance for each. Outside the monitor the retina sees grey.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Standard deviation of the gaze, degrees: mice move their eyes mostly sideways.
GAZE_STD = np.array([4.5, 2.5])

#: Error of the eye tracker, camera pixels.
TRACKING_STD = 0.4


@dataclass(frozen=True)
class EyeMap:
    """The linear map from the pupil's centre in the camera to the gaze on the monitor.

    Attributes:
        centre: camera pixels of the pupil when the gaze is zero [2].
        gain: degrees per camera pixel [2, 2].
    """

    centre: np.ndarray
    gain: np.ndarray

    def gaze(self, pupil: np.ndarray) -> np.ndarray:
        """Degrees [..., 2] of pupil centres [..., 2] in camera pixels."""
        return (pupil - self.centre) @ self.gain.T

    def pupil(self, gaze: np.ndarray) -> np.ndarray:
        """Camera pixels [..., 2] of gazes [..., 2] in degrees."""
        return self.centre + gaze @ np.linalg.inv(self.gain).T


def sample_eye_map(rng: np.random.Generator) -> EyeMap:
    """A mouse's camera: 0.2-0.35 degrees per pixel, tilted by up to some 10 degrees."""
    tilt = np.radians(rng.normal(0, 5))
    rotation = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    gain = np.diag(rng.uniform(0.2, 0.35, 2)) @ rotation
    return EyeMap(rng.normal([320, 240], [25, 20]), gain)


def gaze_trace(frames: int, frame_rate: float, size: float, rng: np.random.Generator) -> np.ndarray:
    """Gaze [frames, 2] in degrees: fixations broken by saccades, drift between, slow wander.

    Saccades come about every two seconds and are over within a frame.

    Args:
        frames: of the whole session.
        frame_rate: Hz.
        size: factor on all movements; 0 is a still eye.
        rng: its generator.
    """
    saccades = rng.random(frames) < 0.5 / frame_rate
    fixation = np.cumsum(saccades)
    targets = rng.normal(0, 0.85, (int(fixation[-1]) + 1, 2))
    drift = np.cumsum(rng.normal(0, 0.25 / np.sqrt(frame_rate), (frames, 2)), axis=0)
    starts = np.flatnonzero(np.concatenate([[True], saccades[1:]]))
    since = np.searchsorted(starts, np.arange(frames), side="right") - 1
    drift -= drift[starts[since]]  # each fixation starts on its target
    minutes = np.arange(frames)[:, None] / frame_rate / 60
    wander = 0.35 * np.sin(2 * np.pi * (minutes * rng.uniform(0.2, 0.6, 2) + rng.random(2)))
    gaze = targets[fixation] + drift + wander
    return size * np.clip(gaze, -3, 3) * GAZE_STD


def retinal_image(video: np.ndarray, gaze: np.ndarray, degrees_per_pixel: float) -> np.ndarray:
    """What a moving eye sees: each frame shifted by minus the gaze, bilinearly.

    Args:
        video: contrast [T, H, W] float32 on the monitor; 0 is grey.
        gaze: degrees [T, 2], x to the right and y down.
        degrees_per_pixel: visual angle of a pixel.

    Returns:
        Contrast [T, H, W] on a retinal grid whose pixel (i, j) is the monitor's at gaze zero.
    """
    frames, height, width = video.shape
    if not np.any(gaze):
        return video
    shift = gaze / degrees_per_pixel
    whole = np.floor(shift).astype(np.intp)
    part = (shift - whole).astype(np.float32)
    reach = int(np.abs(whole).max()) + 1
    padded = np.zeros((frames, height + 2 * reach, width + 2 * reach), np.float32)
    padded[:, reach:-reach, reach:-reach] = video
    shifted = np.empty_like(video)
    left = reach + whole[:, 0]
    top = reach + whole[:, 1]
    # Slices copied row by row beat index arrays: the four neighbours are one slice each way.
    for frame in range(frames):
        i, j = top[frame], left[frame]
        fx, fy = part[frame]
        patch = padded[frame, i : i + height + 1, j : j + width + 1]
        across = patch[:, :-1] + fx * (patch[:, 1:] - patch[:, :-1])
        shifted[frame] = across[:-1] + fy * (across[1:] - across[:-1])
    return shifted
