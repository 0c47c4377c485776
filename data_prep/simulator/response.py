"""From what the retina sees to firing rates: motion energy and divisive normalisation.

A neuron has two separable space-time filter pairs. With even and odd Gabors e, o (phases 90 degrees
apart) and temporal kernels k1, k2 in quadrature, the projections of the movie give

    s1 = e*k1 - w o*k2,    s2 = o*k1 + w e*k2,

the direction-selective quadrature pair of Adelson and Bergen (J. Opt. Soc. Am. A 2, 284-299, 1985);
the direction weight w goes from 0 (no preference) to 1. A grating at the carrier's frequencies has
the amplitude (1 + w)/2 in the preferred and (1 - w)/2 in the opposite direction. With the
amplitude A = sqrt(s1^2 + s2^2), a complex cell's drive is A^n, a simple cell's 2 max(s1, 0)^n. Each
is divided by A^n pooled over the neurons that look at the same place (Heeger, Vis. Neurosci. 9,
181-197, 1992):

    rate = baseline + rate * c * drive / (semisaturation + pool).

Filters are scaled so that A^2 has mean 1 over natural movies, and c so that the mean of
c * drive / (...) is 1 over them.
"""

from __future__ import annotations

import numpy as np
from scipy import fft

from data_prep.simulator.eye import retinal_image
from data_prep.simulator.population import Population
from data_prep.simulator.stimuli import Screen, to_contrast

#: Exponent n of the amplitude, before normalisation.
EXPONENT = 1.4
#: Pooled A^n at which normalisation sets in; its mean over natural movies is a little below 1.
SEMISATURATION = 0.5
#: Spread of the normalisation pool over the visual field, degrees.
POOL_SIGMA = 15.0


def temporal_kernels(population: Population, frame_rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Quadrature pair of causal kernels [K, U], first tap the current frame.

    A cosine and a sine at the preferred temporal frequency under the envelope t exp(-t/tau), which
    starts after the latency and lasts about half a cycle; at most 4 tau + latency are kept.
    """
    tau = np.clip(0.25 / population.temporal_frequency, 0.035, 0.125)
    taps = int(np.ceil((population.latency + 4 * tau).max() * frame_rate)) + 1
    # A frame lights the screen for its whole period, so the kernel is taken at its middle.
    time = (np.arange(taps)[:, None] + 0.5) / frame_rate - population.latency
    after = np.maximum(time, 0)
    envelope = after / tau * np.exp(1 - after / tau)
    angle = 2 * np.pi * population.temporal_frequency * (time - tau)
    kernels = envelope * np.cos(angle), envelope * np.sin(angle)
    return kernels[0].astype(np.float32), kernels[1].astype(np.float32)


def spatial_filters(population: Population, screen: Screen) -> np.ndarray:
    """Even then odd Gabors [H * W, 2U] on the retinal grid, without response to uniform light."""
    x, y = screen.grid()
    dx = x[..., None] - population.centre[:, 0]
    dy = y[..., None] - population.centre[:, 1]
    angle = np.radians(population.direction)
    across = dx * np.cos(angle) + dy * np.sin(angle)
    along = dy * np.cos(angle) - dx * np.sin(angle)
    envelope = np.exp(
        -0.5 * (across / population.sigma_across) ** 2 - 0.5 * (along / population.sigma_along) ** 2
    )
    carrier = 2 * np.pi * population.spatial_frequency * across + population.phase
    weight = envelope.sum((0, 1))
    pair = []
    for wave in (np.cos(carrier), np.sin(carrier)):
        gabor = envelope * wave
        gabor -= envelope * (gabor.sum((0, 1)) / weight)
        pair.append(gabor.reshape(-1, len(population)))
    filters = np.concatenate(pair, axis=1)
    # A Gaussian's far tail is denormal in single precision, which makes products many times slower.
    filters[np.abs(filters) < 1e-7] = 0
    return filters.astype(np.float32)


class Responder:
    """A population's noise-free response to any video, for any path of the gaze."""

    def __init__(
        self, population: Population, screen: Screen, calibration: list[np.ndarray]
    ) -> None:
        """Build the filters and set their scales.

        Args:
            population: U neurons.
            screen: the geometry of the videos.
            calibration: natural movies [T, H, W] uint8 that the scales are set on.
        """
        self.population = population
        self.screen = screen
        self.filters = spatial_filters(population, screen)
        self.kernels = temporal_kernels(population, screen.frame_rate)
        self._spectra: dict[int, np.ndarray] = {}  # by length: trials have few
        distance = population.centre[:, None] - population.centre[None]
        pool = np.exp(-np.sum(distance**2, -1) / (2 * POOL_SIGMA**2))
        self.pool = (pool / pool.sum(1, keepdims=True)).astype(np.float32)
        self.scale = np.ones(len(population), np.float32)
        still = [self._filtered(to_contrast(movie), None) for movie in calibration]
        energy = np.mean([np.mean(a**2 + b**2, axis=0) for a, b in still], axis=0)
        self.scale = (1 / np.sqrt(np.maximum(energy, 1e-12))).astype(np.float32)
        drives = [self._normalised(a * self.scale, b * self.scale) for a, b in still]
        mean = np.mean([drive.mean(0) for drive in drives], axis=0)
        self.unit = (1 / np.maximum(mean, 1e-6)).astype(np.float32)

    def drive(self, video: np.ndarray, gaze: np.ndarray | None = None) -> np.ndarray:
        """Normalised drive [T, U], mean 1 over natural movies; a grey screen precedes the video.

        Args:
            video: [T, H, W] uint8, or float contrast with -1 black, 0 grey and 1 white.
            gaze: degrees [T, 2]; None is a still eye that looks straight ahead.
        """
        first, second = self._filtered(to_contrast(video), gaze)
        return self.unit * self._normalised(first * self.scale, second * self.scale)

    def rates(self, video: np.ndarray, gaze: np.ndarray | None = None) -> np.ndarray:
        """Expected response [T, U] in a.u. at rest; arguments as of `drive`."""
        population = self.population
        rates = population.baseline + population.rate * self.drive(video, gaze)
        return rates.astype(np.float32)

    def _filtered(
        self, contrast: np.ndarray, gaze: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The quadrature pair s1, s2 [T, U], not yet scaled."""
        if gaze is not None:
            contrast = retinal_image(contrast, gaze, self.screen.degrees_per_pixel)
        neurons = len(self.population)
        projection = self.filters.T @ contrast.reshape(len(contrast), -1).T  # [2U, T]
        # s1 + i s2 = (e + i o) * (k1 + i w k2): one complex convolution in time.
        signal = (projection[:neurons] + 1j * projection[neurons:]).astype(np.complex64)
        frames = signal.shape[1]
        length = fft.next_fast_len(frames + len(self.kernels[0]) - 1)
        spectrum = fft.fft(signal, length, axis=1) * self._kernel_spectrum(length)
        pair = fft.ifft(spectrum, axis=1)[:, :frames].T
        return np.ascontiguousarray(pair.real), np.ascontiguousarray(pair.imag)

    def _kernel_spectrum(self, length: int) -> np.ndarray:
        """Transform of k1 + i w k2, zero-padded to `length` [U, length]."""
        if length not in self._spectra:
            weight = self.population.direction_weight
            kernel = (self.kernels[0] + 1j * weight * self.kernels[1]).T.astype(np.complex64)
            self._spectra[length] = fft.fft(kernel, length, axis=1)
        return self._spectra[length]

    def _normalised(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        motion = (first**2 + second**2) ** np.float32(EXPONENT / 2)
        simple = 2 * np.maximum(first, 0) ** np.float32(EXPONENT)
        drive = np.where(self.population.is_complex, motion, simple)
        return drive / (SEMISATURATION + motion @ self.pool.T)


def behaviour_gain(
    population: Population, treadmill: np.ndarray, arousal: np.ndarray, strength: float
) -> np.ndarray:
    """Gain [T, U] by running and arousal, 1 at rest and average arousal, never below 0.2.

    Running raises responses multiplicatively in mouse V1 (Niell and Stryker, Neuron 65, 472-479,
    2010); arousal does so, more weakly, in most neurons.

    Args:
        population: U neurons.
        treadmill: running speed [T], cm/s.
        arousal: standardised [T].
        strength: factor on both.
    """
    speed = np.tanh(treadmill / 15)[:, None]
    gain = 1 + strength * (
        population.gain_running * speed + population.gain_arousal * arousal[:, None]
    )
    return np.clip(gain, 0.2, None).astype(np.float32)
