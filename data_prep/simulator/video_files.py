"""Clips cut from the video files that a user gives."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from fmcortex.errors import DataError


@dataclass(frozen=True)
class Clip:
    """A stretch of a video file: `start` in stimulus frames."""

    path: str
    start: int
    name: str


def list_clips(
    paths: tuple[str, ...], frames: int, height: int, width: int, frame_rate: float
) -> list[Clip]:
    """All clips of `frames` stimulus frames that do not overlap, in order.

    Raises:
        DataError: a file cannot be read, or is shorter than one clip.
    """
    clips = []
    for number, path in enumerate(paths):
        length = len(load_video(path, height, width, frame_rate))
        if length < frames:
            raise DataError(
                f"{path}: {length / frame_rate:.1f} s long, a trial is {frames / frame_rate:.1f} s"
            )
        stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(path).stem).strip("-") or "video"
        clips += [
            Clip(path, start, f"{number}-{stem[:60]}-{start // frames}")
            for start in range(0, length - frames + 1, frames)
        ]
    return clips


# A few files fit in memory at the monitor's size; every trial of a session cuts from them.
@lru_cache(maxsize=8)
def load_video(path: str, height: int, width: int, frame_rate: float) -> np.ndarray:
    """A video file as grey levels [T, height, width] uint8 at `frame_rate`.

    A .npy array is taken to be at that rate already; other files are resampled in time by taking
    the nearest frame. The picture is resized by averaging areas.

    Raises:
        DataError: the file is missing or not a video, or imageio is not installed.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such video file")
    if Path(path).suffix == ".npy":
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"{path}: not a .npy array: {error}") from error
        if array.ndim != 3 or array.dtype != np.uint8:
            raise DataError(f"{path}: is {array.dtype} {array.shape}, must be uint8 [T, H, W]")
        video = [_resize(frame.astype(np.float32), height, width) for frame in array]
        times = np.arange(len(video))
    else:
        video, source_rate = _decode(path, height, width)
        steps = np.arange(int(len(video) / source_rate * frame_rate)) / frame_rate
        times = np.minimum(np.rint(steps * source_rate).astype(int), len(video) - 1)
    if not len(times):
        raise DataError(f"{path}: has no frames")
    return np.stack(video)[times]


def _decode(path: str, height: int, width: int) -> tuple[list[np.ndarray], float]:
    try:
        import imageio.v3 as iio
    except ImportError as error:
        raise DataError(
            f"{path}: reading video files needs imageio: pip install 'fmcortex[video]'"
        ) from error
    try:
        rate = float(iio.immeta(path).get("fps") or 0)
        frames = [_resize(_grey(np.asarray(frame)), height, width) for frame in iio.imiter(path)]
    except Exception as error:  # imageio's plugins raise errors of their own
        raise DataError(f"{path}: cannot be read as a video: {error}") from error
    if rate <= 0:
        raise DataError(f"{path}: does not say its frame rate")
    return frames, rate


def _grey(frame: np.ndarray) -> np.ndarray:
    """Luma [H, W] of a frame [H, W] or [H, W, 3 or 4] (weights of ITU-R BT.601)."""
    frame = frame.astype(np.float32)
    if frame.ndim == 2:
        return frame
    return frame[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)


def _resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """`frame` resized to [height, width] uint8 by averaging the area under each new pixel."""
    if frame.shape != (height, width):
        frame = _coverage(frame.shape[0], height) @ frame @ _coverage(frame.shape[1], width).T
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)


@lru_cache(maxsize=32)
def _coverage(old: int, new: int) -> np.ndarray:
    """Share of each old pixel in each new one [new, old] float32; rows sum to 1."""
    edges = np.arange(new + 1) * old / new
    low = np.maximum(edges[:-1, None], np.arange(old)[None])
    high = np.minimum(edges[1:, None], np.arange(old)[None] + 1)
    return (np.maximum(high - low, 0) * new / old).astype(np.float32)
