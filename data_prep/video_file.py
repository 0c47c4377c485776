"""Video files, frame by frame, as grey levels; and as the .npy array that recordings go with."""

from __future__ import annotations

import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from data_prep.resampling import area_weights
from fmcortex.errors import ConfigError, DataError, StorageError

_weights = lru_cache(maxsize=32)(area_weights)


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says of itself.

    Attributes:
        height: pixels.
        width: pixels.
        frame_rate: frames a second, 0 where it does not say.
        seconds: its length, 0 where it does not say.
    """

    height: int
    width: int
    frame_rate: float
    seconds: float


def video_info(path: str) -> VideoInfo:
    """What the head of a video file says.

    Raises:
        DataError: the file is missing or cannot be read as a video, or imageio is not installed.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such video file")
    _ffmpeg(path)
    import imageio.v3 as imageio

    try:
        said = imageio.immeta(path, plugin="FFMPEG")
        width, height = said["size"]  # as decoded: turned, if the file says so
        return VideoInfo(height, width, said.get("fps") or 0.0, said.get("duration") or 0.0)
    except Exception as error:  # imageio's plugins raise errors of their own
        raise DataError(f"{path}: cannot be read as a video: {_line(str(error))}") from error


def grey_frames(path: str, frame_rate: float | None = None) -> Iterator[np.ndarray]:
    """The frames of a video file in order, grey levels 0 to 255, float64 [H, W].

    ffmpeg is run here, since imageio takes the frames before an error for all that there are.

    Args:
        path: the video file.
        frame_rate: frames a second, for which frames are repeated or dropped by their times; None
            for each frame once, whatever its time.

    Raises:
        DataError: as `video_info`, or the video is damaged.
    """
    info, count = video_info(path), 0
    shape = (info.height, info.width, 3)
    command = [_ffmpeg(path), "-v", "error", "-xerror", "-i", f"file:{path}", "-map", "0:v:0"]
    if frame_rate is None:
        command += ["-fps_mode", "passthrough"]
    else:
        command += ["-fps_mode", "cfr", "-r", str(frame_rate)]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        ) as process,
    ):
        assert process.stdout is not None
        try:
            while len(content := process.stdout.read(math.prod(shape))) == math.prod(shape):
                yield grey(np.frombuffer(content, np.uint8).reshape(shape))
                count += 1
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0 or content:
            said.seek(0)
            reason = _line(said.read().decode(errors="replace"))
            raise DataError(f"{path}: is damaged after frame {count}: {reason}")


def decode_video(
    path: str,
    to: str,
    size: tuple[int, int] | None = None,
    progress: Callable[[int], None] | None = None,
    overwrite: bool = False,
) -> tuple[int, int, int]:
    """Write a video as a .npy array uint8 [T, H, W], a frame in memory at a time.

    Args:
        path: the video file.
        to: the .npy file; there only when all of it is.
        size: height and width in pixels, by averaging areas; None for those of the video.
        progress: called with the number of frames so far.
        overwrite: replace a file that is there.

    Returns:
        T, H, W.

    Raises:
        ConfigError: a file is there, or it is the video itself.
        DataError: the video cannot be read, or has no frames.
        StorageError: the array cannot be written.
    """
    if not to.endswith(".npy"):
        raise DataError(f"{to}: must end in .npy")
    if os.path.exists(to) and os.path.exists(path) and os.path.samefile(to, path):
        raise ConfigError(f"{to}: is the video itself; name another file")
    if os.path.exists(to) and not overwrite:
        raise ConfigError(f"{to}: is there already; name another file, or use --overwrite")
    temporary = f"{to}.{os.getpid()}.tmp"
    count, shape = 0, (0, 0)
    try:
        with open(temporary, "wb") as stream:
            for frame in grey_frames(path):
                picture = resize(frame, *(size or frame.shape))
                if count == 0:
                    shape = picture.shape
                    start = _write_header(stream, (0, *shape))
                stream.write(picture.tobytes())
                count += 1
                if progress is not None:
                    progress(count)
            if count == 0:
                raise DataError(f"{path}: has no frames")
            stream.seek(0)
            # NumPy leaves room in a header for the number of frames to grow.
            if _write_header(stream, (count, *shape)) != start:
                raise DataError(f"{to}: its header grew; use another version of NumPy")
        os.replace(temporary, to)
    except OSError as error:
        raise StorageError(f"{to}: cannot write: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            os.remove(temporary)
    return count, *shape


def grey(frame: np.ndarray) -> np.ndarray:
    """Luma float64 [H, W] of a frame [H, W] or [H, W, 3 or 4] (weights of ITU-R BT.601)."""
    frame = frame.astype(np.float64)
    if frame.ndim == 2:
        return frame
    # In whole numbers: what is grey keeps its level to the last bit.
    return frame[..., :3] @ np.array([299.0, 587.0, 114.0]) / 1000


def resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """`frame` resized to [height, width] uint8 by averaging the area under each new pixel."""
    if frame.shape != (height, width):
        down, right = _weights(frame.shape[0], height), _weights(frame.shape[1], width).T
        frame = down @ (frame.astype(np.float64) @ right)
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)


def _write_header(stream: BinaryIO, shape: tuple[int, ...]) -> int:
    """Write that a .npy file holds uint8 of that shape; the position after it."""
    content = {"descr": "|u1", "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(stream, content)
    return stream.tell()


def _ffmpeg(path: str) -> str:
    """The program that decodes."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return str(get_ffmpeg_exe())
    except ImportError as error:
        raise DataError(
            f"{path}: reading video files needs imageio: pip install -e '.[video]' in the checkout"
        ) from error


def _line(text: str) -> str:
    """The first line of what went wrong."""
    return (text.strip() or "no reason given").splitlines()[0]
