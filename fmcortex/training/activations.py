"""How much a micro-batch keeps for the backward pass, found without computing it.

The model is run on tensors that have shapes but no values, for a few short sequences of a few
neurons. What is kept grows linearly with either, so these few numbers tell the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fmcortex.model.network import SessionPart, SharedPart
from fmcortex.model.recurrent import segment_length
from fmcortex.model.sizes import ModelConfig
from fmcortex.training.objective import objective

#: Frames and neurons of the runs that the rest is told from.
FRAMES = (4, 6, 9)
UNITS = (8, 24)


@dataclass(frozen=True)
class MicroBatch:
    """What decides how much a micro-batch keeps, besides the neurons.

    Attributes:
        model: sizes.
        samples: sequences.
        frames: of a sequence.
        height: of the stimulus, pixels.
        width: of the stimulus, pixels.
        bf16: whether the shared part runs in bfloat16.
        recompute: whether its activations are computed again in the backward pass.
    """

    model: ModelConfig
    samples: int
    frames: int
    height: int
    width: int
    bf16: bool = False
    recompute: bool = False


class Kept:
    """Counts the bytes of distinct storages that are kept for the backward pass.

    Args:
        shared: whose stages are told apart.
        sessions: whose parameters, like those of `shared`, do not count.

    Attributes:
        total: bytes so far.
        of: bytes by stage of the shared part: each block, and the recurrence.
    """

    def __init__(self, shared: SharedPart, sessions: Sequence[SessionPart]) -> None:
        parameters: list[Tensor] = [p for part in (shared, *sessions) for p in part.parameters()]
        # What was seen is held, so that its place is not given to another.
        self._seen = {p.untyped_storage()._cdata: p for p in parameters}
        self._shared = shared
        self._stage: str | None = None
        self.total, self.of = 0, dict[str, int]()

    def copy(self) -> Kept:
        """Another that goes on from what this one has seen."""
        other = Kept(self._shared, [])
        other._seen, other.total, other.of = dict(self._seen), self.total, dict(self.of)
        return other

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = x
            self.total += storage.nbytes()
            if self._stage:
                self.of[self._stage] = self.of.get(self._stage, 0) + storage.nbytes()
        return x

    def _enter(self, stage: str | None) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object) -> None:
            self._stage = stage

        return hook

    @contextmanager
    def count(self) -> Iterator[None]:
        """Count what is kept of what runs in this context."""
        core = self._shared.core
        begins = {f"block {i}": conv for i, conv in enumerate(core.feedforward.inputs)}
        begins["recurrent"] = core.recurrent
        hooks = [m.register_forward_pre_hook(self._enter(name)) for name, m in begins.items()]
        for module in (core.feedforward.out, core.recurrent.out):
            hooks.append(module.register_forward_pre_hook(self._enter(None)))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x):
                yield
        finally:
            for hook in hooks:
                hook.remove()


def run_micro_batch(
    shared: SharedPart,
    sessions: Sequence[SessionPart],
    of: MicroBatch,
    frames: int,
    burnin: int = 0,
) -> list[Kept]:
    """Run a micro-batch of `frames` frames as training does; what is kept, for each session.

    What does not depend on the neurons is run once.
    """
    stimuli = torch.zeros(of.samples, frames, of.height, of.width, dtype=torch.uint8)
    pupil = torch.zeros(of.samples, frames, of.model.perspectives)
    behaviour = torch.zeros(of.samples, frames, of.model.modulations)
    shared.checkpoint_activations(of.recompute)
    noise, common = torch.Generator(), Kept(shared, sessions)
    with common.count():
        retina, features = sessions[0].inputs(stimuli, pupil, behaviour, 0, noise)
        with torch.autocast("cpu", torch.bfloat16) if of.bf16 else nullcontext():
            core = shared(retina, features, 0, noise)
        core = core.float()
    found = []
    for part in sessions:
        responses = torch.zeros(of.samples, frames, part.units)
        kept = common.copy()
        with kept.count():
            raw = part.outputs(core, 0, noise)[:, :, 0]
            loss = objective(raw, responses, burnin, of.model.unit)
        assert loss.requires_grad
        found.append(kept)
    return found


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass of a micro-batch, as a line over the neurons.

    Attributes:
        base: bytes without neurons.
        unit: bytes of each neuron.
        again: bytes of the largest stage that is computed again at a time; they come on top.
    """

    base: float
    unit: float
    again: float

    def of(self, units: int) -> int:
        """Bytes of a session of `units` neurons."""
        return round(self.base + self.unit * units + self.again)


def _runs(
    of: MicroBatch, parts: tuple[SharedPart, list[SessionPart]]
) -> dict[tuple[int, int], Kept]:
    """What is kept, by frames and neurons."""
    found = {}
    for frames in FRAMES if of.recompute else FRAMES[:2]:
        for units, kept in zip(UNITS, run_micro_batch(*parts, of, frames), strict=True):
            found[frames, units] = kept
    return found


def _told(runs: Mapping[tuple[int, int], int], of: MicroBatch) -> tuple[float, float]:
    """Bytes without neurons and of each neuron, at the frames of `of`, from those of short runs."""

    def terms(frames: int) -> list[int]:
        segments = -(-frames // segment_length(frames))
        return [1, frames, segments]  # a state is kept for each segment that is computed again

    lengths = sorted({frames for frames, _ in runs})
    some = np.array([terms(frames)[: len(lengths)] for frames in lengths], float)
    bytes_ = np.array([[runs[frames, u] for u in UNITS] for frames in lengths], float)
    low, high = np.linalg.solve(some, bytes_).T @ terms(of.frames)[: len(lengths)]
    unit = (high - low) / (UNITS[1] - UNITS[0])
    return float(low - unit * UNITS[0]), float(unit)


def activations(of: MicroBatch) -> Activations:
    """What micro-batches of any number of neurons keep; takes about a second at most."""
    with FakeTensorMode():
        parts = SharedPart(of.model), [SessionPart(of.model, units) for units in UNITS]
        runs = _runs(of, parts)
        plain = _runs(replace(of, recompute=False), parts) if of.recompute else {}
    base, unit = _told({at: kept.total for at, kept in runs.items()}, of)
    again = [0.0]
    for stage in plain[FRAMES[0], UNITS[0]].of if plain else ():
        of_stage = {at: kept.of[stage] for at, kept in plain.items()}
        bytes_, _ = _told(of_stage, of)
        part = segment_length(of.frames) / of.frames if stage == "recurrent" else 1.0
        again.append(bytes_ * part)
    return Activations(base, unit, max(again))
