"""The network of one mouse, made of a part that all mice share and a part of its own.

The shared part is `core` and `modulation.lstm`; the session's part is `perspective`,
`modulation.mlp` and `readout`. Both carry the names of the released weights, so the state dict of
a `Network` is the union of theirs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from fmcortex.model.feedforward import Feedforward
from fmcortex.model.modulation import Modulation, SessionModulation, SharedModulation
from fmcortex.model.past import Past
from fmcortex.model.perspective import Perspective
from fmcortex.model.prediction import Stream
from fmcortex.model.readout import Readout
from fmcortex.model.recurrent import recurrent
from fmcortex.model.sizes import ModelConfig
from fmcortex.model.unit import response


class Core(nn.Module):
    """Retina to visual features: feedforward, then recurrent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.feedforward = Feedforward(config)
        self.recurrent = recurrent(config)

    def forward(
        self,
        retina: Tensor,
        modulation: Tensor,
        stream: int | None = None,
        noise: Generator | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """retina [N, T, H', W'] and modulation [N, S*M, T] to [N, S*C, T, h, w]."""
        features = self.feedforward(retina, stream, noise, past)
        return self.recurrent(features, modulation, stream, noise, past)


class SharedPart(nn.Module):
    """What all mice share: the core and the modulation's LSTM."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.core = Core(config)
        self.modulation = SharedModulation(config)

    def checkpoint_activations(self, on: bool) -> None:
        """Whether activations are computed again in the backward pass rather than kept.

        Outputs and gradients are the same; a step takes less memory and more time. It belongs to
        how the part is run, and is not saved with it.
        """
        self.core.feedforward.recompute = on
        self.core.recurrent.recompute = on

    def forward(
        self,
        retina: Tensor,
        behaviour: Tensor,
        stream: int | None = None,
        noise: Generator | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Features that a readout can read.

        Args:
            retina: [N, T, H', W'].
            behaviour: [N, S*F, T], the output of the session's modulation MLP.
            stream: one stream, or None for all.
            noise: draws the dropout masks in training; None in evaluation.
            past: what goes before, where a video comes piece by piece.

        Returns:
            [N, S*C, T, h, w]
        """
        modulation = self.modulation.lstm(behaviour, stream, past)
        return self.core(retina, modulation, stream, noise, past)


class SessionPart(nn.Module):
    """What one recording session has for itself: its eye, its behaviour, its neurons."""

    def __init__(self, config: ModelConfig, units: int) -> None:
        super().__init__()
        self.config, self.units = config, units
        self.perspective = Perspective(config)
        self.modulation = SessionModulation(config)
        self.readout = Readout(config, units)

    def inputs(
        self,
        stimuli: Tensor,
        perspectives: Tensor,
        modulations: Tensor,
        stream: int | None = None,
        noise: Generator | None = None,
        past: Past | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the shared part receives.

        Args:
            stimuli: [N, T, H, W] uint8 grey video, or float in [0, 1].
            perspectives: [N, T, P] standardised pupil positions.
            modulations: [N, T, M] standardised behaviour.
            stream: one stream, or None for all.
            noise: draws the monitor's jitter in training; None in evaluation.
            past: what goes before, where a video comes piece by piece.

        Returns:
            The retina's view [N, T, H', W'] and the behaviour's features [N, S*F, T].
        """
        if stimuli.dtype == torch.uint8:
            stimuli = stimuli.to(perspectives.dtype) / 255
        retina = self.perspective(stimuli, perspectives, noise)
        streams = self.config.streams if stream is None else 1
        behaviour = modulations.transpose(1, 2).repeat(1, streams, 1)  # [N, S*M, T]
        return retina, self.modulation.mlp(behaviour, stream, past)

    def outputs(
        self,
        core: Tensor,
        stream: int | None = None,
        noise: Generator | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Raw outputs [N, T, S, U] of the core's features [N, S*C, T, h, w]."""
        return self.readout(core, stream, noise, past)


class Network(nn.Module):
    """The whole network of one recording session.

    Args:
        shared: the part common to all mice.
        session: the part of this one. Both must be of the same `ModelConfig`.
    """

    def __init__(self, shared: SharedPart, session: SessionPart) -> None:
        super().__init__()
        self.config = session.config
        # The parts are held in a tuple, unregistered: their modules appear once, under the
        # released names.
        self._parts = (shared, session)
        self.core = shared.core
        self.perspective = session.perspective
        self.modulation = Modulation(shared.modulation, session.modulation)
        self.readout = session.readout

    @classmethod
    def build(cls, config: ModelConfig, units: int) -> Network:
        """A new network with random weights for a session of `units` neurons."""
        return cls(SharedPart(config), SessionPart(config, units))

    @property
    def shared(self) -> SharedPart:
        """The part common to all mice."""
        return self._parts[0]

    @property
    def session(self) -> SessionPart:
        """The part of this recording session."""
        return self._parts[1]

    def raw(
        self,
        stimuli: Tensor,
        perspectives: Tensor,
        modulations: Tensor,
        stream: int | None = None,
        noise: Generator | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Raw outputs [N, T, S, U]; the arguments are those of `SessionPart.inputs`."""
        how = stream, noise, past
        retina, behaviour = self.session.inputs(stimuli, perspectives, modulations, *how)
        return self.session.outputs(self.shared(retina, behaviour, *how), *how)

    def forward(
        self,
        stimuli: Tensor,
        perspectives: Tensor,
        modulations: Tensor,
        stream: int | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Predicted responses [N, T, U]: of one stream, or of the mean over their raw outputs."""
        raw = self.raw(stimuli, perspectives, modulations, stream, past=past)
        return response(raw.mean(dim=2), self.config.unit)

    def predict(
        self,
        stimuli: NDArray[np.uint8],
        perspectives: NDArray[np.floating],
        modulations: NDArray[np.floating],
    ) -> NDArray[np.float32]:
        """Predicted responses, NumPy in and out; memory does not grow with the videos' length.

        Args:
            stimuli: [T, H, W] or [N, T, H, W] grey video, uint8, 0 to 255.
            perspectives: [T, P] or [N, T, P] standardised pupil positions.
            modulations: [T, M] or [N, T, M] standardised behaviour.

        Returns:
            [T, U] or [N, T, U] responses, in units of each neuron's training mean.

        Raises:
            DataError: the arrays' shapes do not fit each other or the network.
        """
        stimuli = np.asarray(stimuli)
        return self.stream().feed(stimuli, perspectives, modulations)

    def stream(self) -> Stream:
        """Begins a prediction that is fed piece by piece, as a closed loop needs it."""
        return Stream(self)
