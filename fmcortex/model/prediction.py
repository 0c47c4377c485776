"""Predicting a video piece by piece: memory does not grow with its length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fmcortex.errors import DataError
from fmcortex.model.past import Past
from fmcortex.model.sizes import ModelConfig

if TYPE_CHECKING:
    from fmcortex.model.network import Network

#: Numbers of the largest feature map of a segment, by kind of device: few enough to stay in a
#: CPU's caches, and to lie in memory that is used again rather than asked for anew.
NUMBERS = {"cpu": 1 << 24}
OTHERWISE = 1 << 27


def segment_frames(config: ModelConfig, samples: int, device: torch.device) -> int:
    """Frames that are predicted at a time."""
    height = config.retina_height // config.input_stride
    width = config.retina_width // config.input_stride
    largest = config.retina_height * config.retina_width
    for channels, layers, pool in zip(
        config.block_channels, config.block_layers, config.block_pools, strict=True
    ):
        largest = max(largest, config.streams * channels * (layers + 1) * height * width)
        height, width = height // pool, width // pool
    return max(NUMBERS.get(device.type, OTHERWISE) // (samples * largest), 1)


class Stream:
    """Predicts what it is fed, frame after frame or in pieces of any length.

    It goes on from the state that it is in: a video that is fed in pieces has the responses that it
    has as a whole. The network's weights must not change meanwhile.

    Args:
        network: of the session.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._past = Past()
        self._samples: int | None = None

    def feed(
        self,
        stimuli: NDArray[np.uint8],
        perspectives: NDArray[np.floating],
        modulations: NDArray[np.floating],
    ) -> NDArray[np.float32]:
        """Predicted responses to the next frames, of one video or of N videos side by side.

        Args:
            stimuli: [T, H, W] or [N, T, H, W] grey video, uint8, 0 to 255.
            perspectives: [T, P] or [N, T, P] standardised pupil positions.
            modulations: [T, M] or [N, T, M] standardised behaviour.

        Returns:
            [T, U] or [N, T, U] responses, in units of each neuron's training mean.

        Raises:
            DataError: the arrays' shapes do not fit each other, the network, or the number of
                videos that was fed before.
        """
        stimuli = np.asarray(stimuli)
        one = stimuli.ndim == 3
        if stimuli.dtype != np.uint8 or stimuli.ndim not in (3, 4):
            raise DataError(
                f"stimuli: expected uint8 [T, H, W] or [N, T, H, W], got {stimuli.dtype}"
                f" {list(stimuli.shape)}"
            )
        arrays = [
            np.asarray(a)[None] if one else np.asarray(a)
            for a in (stimuli, perspectives, modulations)
        ]
        check_inputs(self.network.config, int(one), *arrays)
        samples, frames = arrays[0].shape[:2]
        if self._samples not in (None, samples):
            raise DataError(
                f"stimuli: {samples} videos, but this stream was begun with {self._samples}"
            )
        self._samples = samples
        out = np.empty((samples, frames, self.network.session.units), np.float32)
        like = self.network.readout.position.mu
        length = segment_frames(self.network.config, samples, like.device)
        for start in range(0, frames, length):
            part = slice(start, start + length)
            video, eye, behaviour = (
                torch.tensor(np.ascontiguousarray(a[:, part]), dtype=kind, device=like.device)
                for a, kind in zip(arrays, (torch.uint8, like.dtype, like.dtype), strict=True)
            )
            with torch.no_grad():
                found = self.network(video, eye, behaviour, past=self._past)
            out[:, part] = found.float().cpu().numpy()
        return out[0] if one else out


def check_inputs(
    config: ModelConfig,
    leading: int,
    stimuli: NDArray,
    perspectives: NDArray,
    modulations: NDArray,
) -> None:
    """Refuse arrays that do not fit; shapes are named without the first `leading` axes.

    Raises:
        DataError: naming the array.
    """
    if stimuli.shape[1] < 1 or min(stimuli.shape[2:]) < 2:
        raise DataError(
            f"stimuli: at least one frame of 2 x 2 pixels is needed, got"
            f" {list(stimuli.shape[leading:])}"
        )
    sizes = (config.perspectives, config.modulations)
    for name, array, size in zip(
        ("perspectives", "modulations"), (perspectives, modulations), sizes, strict=True
    ):
        expected = (*stimuli.shape[:2], size)
        if array.shape != expected:
            raise DataError(
                f"{name}: expected shape {list(expected[leading:])}, got"
                f" {list(array.shape[leading:])}"
            )
        if not np.isfinite(array).all():
            raise DataError(f"{name}: contains NaN or infinite values; interpolate them first")
