"""Where the time of a training step goes: by stage of the network, and by operation."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measure import wait
from sides import STREAM, Ours
from torch import Tensor

from fmcortex.training.objective import objective


@dataclass(frozen=True)
class Done:
    """A stage that has run forward.

    Attributes:
        name: of the stage.
        inputs: those that came from earlier stages, cut off from them.
        sources: the numbers of these stages.
        out: what it gave.
    """

    name: str
    inputs: list[Tensor]
    sources: list[int]
    out: Tensor


class Staged:
    """A step in stages, each cut off from the one before it, forward and then backward.

    Args:
        ours: whose step it is.
        device: that is waited for after each stage.
    """

    def __init__(self, ours: Ours, device: torch.device) -> None:
        self.ours, self.device = ours, device
        self.seconds: dict[str, float] = defaultdict(float)
        self._done: list[Done] = []

    def _run(self, name: str, stage: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        sources = [
            next((n for n, done in enumerate(self._done) if done.out is x), None) for x in inputs
        ]
        cut = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
        wait(self.device)
        began = time.perf_counter()
        out = stage(*cut)
        wait(self.device)
        self.seconds[f"{name}, forward"] += time.perf_counter() - began
        known = [(n, x) for n, x in zip(sources, cut, strict=True) if n is not None]
        self._done.append(Done(name, [x for _, x in known], [n for n, _ in known], out))
        return out

    def step(self) -> None:
        """One step."""
        ours, network = self.ours, self.ours.network
        session, shared = network.session, network.shared
        began = time.perf_counter()
        stimuli, pupil, behaviour, responses = (
            x.cpu().to(self.device) if self.device.type == "cuda" else x for x in ours.tensors
        )
        wait(self.device)
        self.seconds["data to the device"] += time.perf_counter() - began
        noise = torch.Generator().manual_seed(1)
        retina = self._run(
            "perspective", lambda: session.perspective(grey(stimuli, pupil), pupil, noise)
        )
        moved = behaviour.transpose(1, 2)
        features = self._run("modulation MLP", lambda: session.modulation.mlp(moved, STREAM))
        with ours.autocast():
            state = self._run(
                "modulation LSTM", lambda x: shared.modulation.lstm(x, STREAM), features
            )
            seen = self._run(
                "feedforward", lambda x: shared.core.feedforward(x, STREAM, noise), retina
            )
            core = self._run(
                "recurrence", lambda x, m: shared.core.recurrent(x, m, STREAM, noise), seen, state
            )
        raw = self._run(
            "readout", lambda x: session.outputs(x.float(), STREAM, noise)[:, :, 0], core
        )
        self._run("loss", lambda x: objective(x, responses, ours.work.burnin), raw)
        found = self._backward()
        began = time.perf_counter()
        prepared = ours.clip(found)
        wait(self.device)
        self.seconds["adaptive clipping"] += time.perf_counter() - began
        began = time.perf_counter()
        ours.optimize(prepared)
        wait(self.device)
        self.seconds["optimizer"] += time.perf_counter() - began

    def _backward(self) -> dict[str, Tensor | None]:
        """Backward through the stages; the gradients by name."""
        parameters = self.ours.trained
        found: dict[str, Tensor | None] = dict.fromkeys(parameters)
        waiting: dict[int, Tensor] = {}
        for number in reversed(range(len(self._done))):
            done = self._done[number]
            wait(self.device)
            began = time.perf_counter()
            gradients = torch.autograd.grad(
                done.out,
                [*done.inputs, *parameters.values()],
                waiting.pop(number, None),
                allow_unused=True,
            )
            wait(self.device)
            self.seconds[f"{done.name}, backward"] += time.perf_counter() - began
            for source, gradient in zip(done.sources, gradients, strict=False):
                assert gradient is not None
                waiting[source] = gradient
            for key, gradient in zip(parameters, gradients[len(done.inputs) :], strict=True):
                if gradient is not None:
                    found[key] = gradient
        self._done.clear()
        return found


def grey(stimuli: Tensor, like: Tensor) -> Tensor:
    """Grey levels in [0, 1], as `SessionPart.inputs` makes them."""
    return stimuli.to(like.dtype) / 255


def stage_times(ours: Ours, device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of each stage of a step, forward and backward."""
    turns = []
    for turn in range(repeats + 1):
        staged = Staged(ours, device)
        staged.step()
        if turn:
            turns.append(staged.seconds)
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def profile_table(ours: Ours, device: torch.device, label: str, rows: int = 14) -> str:
    """The operations of one step that take most time, as text."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    ours.step()
    wait(device)
    with profile(activities=activities) as made:
        began = time.perf_counter()
        ours.step()
        wait(device)
        seconds = time.perf_counter() - began
    events = made.key_averages()
    on_device = device.type == "cuda"
    kind = "self_device_time_total" if on_device else "self_cpu_time_total"
    busy = sum(getattr(event, kind) for event in events) / 1e6
    launches = sum(event.count for event in events if "LaunchKernel" in event.key)
    lines = [
        f"Profile of a step: {label}, {ours.precision}: {seconds * 1e3:.1f} ms of wall clock, "
        f"{busy * 1e3:.1f} ms of the device, {launches} kernels launched"
    ]
    for event in sorted(events, key=lambda event: -getattr(event, kind))[:rows]:
        own = getattr(event, kind) / 1e6
        share = 100 * own / max(busy, 1e-9)
        lines.append(f"  {own * 1e3:9.2f} ms {share:5.1f}%  {event.count:6d} x  {event.key[:90]}")
    return "\n".join(lines)
