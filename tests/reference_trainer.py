"""Training written as plainly as the spec says it, in one process, to compare the trainer with."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from fmcortex.config import RunConfig
from fmcortex.data.dataset import open_dataset
from fmcortex.model.network import Network
from fmcortex.model.parameters import rule_of
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.fit import plan_of


def reference_run(config: RunConfig, steps: int) -> dict[str, Tensor]:
    """All parameters and momenta after `steps`, as `<part>/<name>` and `<part>/<name>/m`.

    Every lane builds a whole network; every gradient is averaged in Python; every parameter is
    stepped by the formulas of the spec, section 6.
    """
    dataset, t = open_dataset(config.data.url), config.training
    plan = plan_of(config, dataset)
    shared = build_shared(config.model, t.seed)
    parts = {
        name: build_session(config.model, dataset.session(name).manifest.neurons, t.seed, name)
        for name in plan.sessions
    }
    owners = {"shared": shared, **parts}
    momentum: dict[tuple[str, str], Tensor] = {}
    for step in range(steps):
        collected: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
        for lane in range(len(plan.lanes)):
            draw = plan.draw(lane, step)
            network = Network(shared, parts[draw.session])
            columns: list[list[Tensor]] = [[], [], [], []]
            for clip in draw.clips:
                trial = dataset.session(draw.session).trial(clip.trial)
                window = slice(clip.start, clip.start + config.data.frames)
                for column, array in zip(
                    columns,
                    (trial.stimulus, trial.perspectives, trial.modulations, trial.responses),
                    strict=True,
                ):
                    column.append(torch.from_numpy(array[window].copy()))
            video, eye, behaviour, recorded = (torch.stack(column) for column in columns)
            noise = torch.Generator().manual_seed(draw.noise_seed)
            raw = network.raw(video, eye, behaviour, draw.stream, noise)[:, t.burnin :, 0]
            loss = (torch.exp(raw) - raw * recorded[:, t.burnin :]).mean()
            for owner in ("shared", draw.session):
                for p in owners[owner].parameters():
                    p.grad = None
            loss.backward()
            for owner in ("shared", draw.session):
                for name, p in owners[owner].named_parameters():
                    if p.grad is not None:
                        collected[owner, name].append(p.grad.clone())
        lr = _rate(step // t.steps_per_epoch, t.lr, t.epochs, t.warmup_epochs)
        for (owner, name), gradients in collected.items():
            p = dict(owners[owner].named_parameters())[name]
            rule = rule_of(p)
            d = sum(gradients) / len(gradients) * rule.scale
            if t.clip is not None:
                dims = tuple(range(p.dim())) if rule.norm_dim is None else rule.norm_dim
                weight = p.detach().pow(2).sum(dims, keepdim=True).sqrt()
                limit = torch.clamp(t.clip * weight, min=t.eps * math.sqrt(p.numel()))
                size = d.pow(2).sum(dims, keepdim=True).sqrt()
                d = d * torch.clamp(limit / size.clamp(min=1e-30), max=1.0)
            m = momentum.get((owner, name))
            m = d.clone() if m is None else t.momentum * m + d
            momentum[owner, name] = m
            d = d + t.momentum * m
            if rule.decay:
                d = d + t.decay * p.detach()
            with torch.no_grad():
                p -= lr * d
    found = {}
    for owner, module in owners.items():
        for name, p in module.named_parameters():
            found[f"{owner}/{name}"] = p.detach().clone()
            moment = momentum.get((owner, name))
            found[f"{owner}/{name}/m"] = torch.zeros_like(p) if moment is None else moment
    return found


def _rate(epoch: int, lr: float, epochs: int, warmup: int) -> float:
    if epoch < warmup:
        return lr * (epoch + 0.5) / warmup
    return lr * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference over largest magnitude, of all tensors by name.

    Tensors that are zero but for rounding are compared with 1e-6 as their magnitude.
    """
    assert set(ours) == set(theirs)
    worst = 0.0
    for name, theirs_ in theirs.items():
        scale = theirs_.abs().max().clamp(min=1e-6)
        worst = max(worst, float((ours[name] - theirs_).abs().max() / scale))
    return worst
