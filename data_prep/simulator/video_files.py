"""Clips cut from the video files that a user gives."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep.video_file import grey_frames, resize, video_info
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
        video = [resize(frame.astype(np.float32), height, width) for frame in array]
        times = np.arange(len(video))
    else:
        source_rate = video_info(path).frame_rate
        if source_rate <= 0:
            raise DataError(f"{path}: does not say its frame rate")
        video = [resize(frame, height, width) for frame in grey_frames(path, source_rate)]
        steps = np.arange(int(len(video) / source_rate * frame_rate)) / frame_rate
        times = np.minimum(np.rint(steps * source_rate).astype(int), len(video) - 1)
    if not len(times):
        raise DataError(f"{path}: has no frames")
    return np.stack(video)[times]
