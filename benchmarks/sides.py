"""The two implementations that `step.py` compares, with the same weights and inputs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import authors
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcortex.config import TrainingConfig
from fmcortex.model.network import Network
from fmcortex.model.parameters import rule_of
from fmcortex.model.released import without_derived
from fmcortex.model.sizes import ModelConfig
from fmcortex.training.engine import step_parameters
from fmcortex.training.objective import objective
from fmcortex.training.optimizer import Prepared, make_optimizer, prepare_gradients

#: The stream that is trained.
STREAM = 0


@dataclass(frozen=True)
class Work:
    """One micro-batch, as arrays: N sequences of T frames.

    Attributes:
        config: sizes; without noise, so that both sides compute the same.
        units: neurons.
        stimuli: uint8 [N, T, H, W].
        perspectives: [N, T, P].
        modulations: [N, T, M].
        responses: [N, T, U].
        burnin: frames that do not count.
    """

    config: ModelConfig
    units: int
    stimuli: NDArray[np.uint8]
    perspectives: NDArray[np.float32]
    modulations: NDArray[np.float32]
    responses: NDArray[np.float32]
    burnin: int

    @classmethod
    def random(
        cls, config: ModelConfig, units: int, samples: int, frames: int, height: int, width: int
    ) -> Work:
        """Random values of these sizes."""
        quiet = config.model_copy(update={"position_std": 0.0, "monitor_std": 0.0})
        generator = np.random.default_rng(0)
        return cls(
            quiet,
            units,
            generator.integers(0, 256, (samples, frames, height, width), dtype=np.uint8),
            generator.normal(size=(samples, frames, config.perspectives)).astype(np.float32),
            generator.normal(size=(samples, frames, config.modulations)).astype(np.float32),
            generator.gamma(1.0, 1.0, (samples, frames, units)).astype(np.float32),
            min(10, frames // 2),
        )

    @property
    def inputs(self) -> tuple[NDArray[Any], ...]:
        """What a prediction needs."""
        return self.stimuli, self.perspectives, self.modulations


def weights(work: Work) -> dict[str, Tensor]:
    """Random weights, none of them zero but the noise's."""
    torch.manual_seed(0)
    network = Network.build(work.config, work.units)
    for name, p in network.named_parameters():
        if not name.endswith(("sigma", "_std")) and not p.detach().any():
            torch.nn.init.normal_(p, std=0.02)
    return network.state_dict()


class Ours:
    """fmcortex.

    Args:
        work: to do.
        state: the weights.
        device: that does it.
        precision: float32, tf32 or bf16.
        recompute: whether activations are computed again in the backward pass.
    """

    def __init__(
        self,
        work: Work,
        state: dict[str, Tensor],
        device: torch.device,
        precision: str = "float32",
        recompute: bool = False,
    ) -> None:
        self.work, self.device, self.precision = work, device, precision
        self.network = Network.build(work.config, work.units)
        self.network.load_state_dict(state)
        self.network.to(device)
        self.network.shared.checkpoint_activations(recompute)
        self.tensors = [torch.from_numpy(x).to(device) for x in (*work.inputs, work.responses)]
        trained = {
            name: p
            for name, p in self.network.named_parameters()
            if rule_of(p).stream in (None, STREAM)
        }
        self.trained = trained
        self.settings = TrainingConfig()
        self.optimizer = make_optimizer(trained, self.settings)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the shared part."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def loss(self) -> Tensor:
        """Of the micro-batch, as training computes it."""
        noise = torch.Generator().manual_seed(1)
        network = self.network
        retina, behaviour = network.session.inputs(*self.tensors[:3], STREAM, noise)
        with self.autocast():
            core = network.shared(retina, behaviour, STREAM, noise)
        raw = network.session.outputs(core.float(), STREAM, noise)[:, :, 0]
        return objective(raw, self.tensors[3], self.work.burnin)

    def step(self) -> dict[str, Tensor | None]:
        """Forward and backward: the gradients by name."""
        found = torch.autograd.grad(self.loss(), list(self.trained.values()), allow_unused=True)
        return dict(zip(self.trained, found, strict=True))

    def clip(self, gradients: dict[str, Tensor | None]) -> Prepared:
        """Scale the gradients, and clip them adaptively."""
        there = {name: g for name, g in gradients.items() if g is not None}
        return prepare_gradients(there, self.trained, self.settings.clip, self.settings.eps)

    def optimize(self, prepared: Prepared) -> None:
        """One step of the optimizer, too small to change anything."""
        step_parameters(self.optimizer, prepared.gradients, 1e-12)

    def predict(self) -> NDArray[np.float32]:
        """Responses [N, T, U] of all streams together."""
        with self.autocast():
            return self.network.predict(*self.work.inputs)


class Theirs:
    """A checkout of fnn.

    Args:
        work: to do.
        state: the weights.
        device: that does it.
    """

    def __init__(self, work: Work, state: dict[str, Tensor], device: torch.device) -> None:
        from fnn.train.optimizers import SgdClip

        self.work = work
        self.network = authors.build(work.config, work.units)
        own = self.network.state_dict()
        assert set(without_derived(own)) == set(state), "the released names differ"
        self.network.load_state_dict({**own, **state})
        self.network.to(device)

        def frames(x: NDArray[Any]) -> list[NDArray[Any]]:
            return [np.ascontiguousarray(x[:, t]) for t in range(x.shape[1])]

        self.inputs = {
            "stimuli": frames(work.stimuli[..., None]),
            "perspectives": frames(work.perspectives),
            "modulations": frames(work.modulations),
        }
        self.responses = frames(work.responses)
        self.parameters = dict(self.network.named_parameters())
        settings = TrainingConfig()
        self.optimizer = SgdClip(
            lr=settings.lr,
            decay=settings.decay,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            clip=settings.clip,
            eps=settings.eps,
        )

    def loss(self) -> Tensor:
        """Of the micro-batch."""
        losses = self.network.generate_loss(
            units=self.responses, **self.inputs, stream=STREAM, training=True
        )
        return torch.stack(list(losses)[self.work.burnin :]).mean()

    def step(self) -> dict[str, Tensor | None]:
        """Forward and backward: the gradients by name."""
        for p in self.parameters.values():
            p.grad = None
        self.loss().backward()
        return {name: p.grad for name, p in self.parameters.items()}

    def optimize(self, gradients: dict[str, Tensor | None]) -> None:
        """Clip, and one step of the optimizer, too small to change anything."""
        for name, p in self.parameters.items():
            p.grad = gradients[name]
        self.optimizer.step(self.parameters, **{**self.optimizer.hyperparameters, "lr": 1e-12})

    def predict(self) -> NDArray[np.float32]:
        """Responses [N, T, U] of all streams together."""
        return np.stack(list(self.network.generate_response(**self.inputs)), 1)


def differences(ours: Ours, theirs: Theirs) -> dict[str, float]:
    """How far both sides are apart, relative to the largest value of each array.

    Returns:
        `responses`, `gradients` (the worst parameter but those of the perspective), `perspective`.
    """
    found = {"responses": 0.0, "gradients": 0.0, "perspective": 0.0}
    one, two = ours.predict(), theirs.predict()
    found["responses"] = float(np.abs(one - two).max() / np.abs(two).max())
    mine, wanted = ours.step(), theirs.step()
    for name, gradient in mine.items():
        other = wanted[name]
        if gradient is None or other is None or name.endswith(("sigma", "_std")):
            continue
        kind = "perspective" if name.startswith("perspective.") else "gradients"
        apart = float((gradient - other).abs().max() / other.abs().max().clip(min=1e-12))
        found[kind] = max(found[kind], apart)
    return found
