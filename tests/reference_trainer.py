"""Training written as plainly as the spec says it, in one process, to compare the trainer with."""

from __future__ import annotations

import math
import re
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
    """All parameters and optimizer states after `steps`, as `<part>/<name>` and
    `<part>/<moment>/<name>`.

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
    moments: dict[tuple[str, str], dict[str, Tensor]] = {}
    ages: dict[tuple[str, str], int] = defaultdict(int)
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
        clipped: dict[tuple[str, str], Tensor] = {}
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
            clipped[owner, name] = d
        norm = math.sqrt(sum(float(d.double().pow(2).sum()) for d in clipped.values()))
        if t.clip_norm is not None and norm > t.clip_norm:
            clipped = {key: d * (t.clip_norm / norm) for key, d in clipped.items()}
        for (owner, name), d in clipped.items():
            p = dict(owners[owner].named_parameters())[name]
            kept = moments.setdefault((owner, name), {})
            ages[owner, name] += 1
            decay = t.decay if rule_of(p).decay else 0.0
            with torch.no_grad():
                if t.optimizer == "sgd":
                    _sgd(p, d, kept, lr, t.momentum, decay)
                else:
                    _adamw(p, d, kept, lr, t.betas, t.adam_eps, decay, ages[owner, name])
    found = {}
    names = ("momentum_buffer",) if t.optimizer == "sgd" else ("exp_avg", "exp_avg_sq")
    for owner, module in owners.items():
        for name, p in module.named_parameters():
            found[f"{owner}/{name}"] = p.detach().clone()
            for moment in names:
                kept = moments.get((owner, name), {})
                found[f"{owner}/{moment}/{name}"] = kept.get(moment, torch.zeros_like(p))
            found[f"{owner}/steps/{name}"] = torch.tensor(ages[owner, name])
    return found


def _sgd(
    p: Tensor, d: Tensor, kept: dict[str, Tensor], lr: float, momentum: float, decay: float
) -> None:
    m = d.clone() if "momentum_buffer" not in kept else momentum * kept["momentum_buffer"] + d
    kept["momentum_buffer"] = m
    p -= lr * (d + momentum * m + decay * p)


def _adamw(
    p: Tensor,
    d: Tensor,
    kept: dict[str, Tensor],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    age: int,
) -> None:
    first, second = betas
    kept["exp_avg"] = first * kept.get("exp_avg", torch.zeros_like(p)) + (1 - first) * d
    square = second * kept.get("exp_avg_sq", torch.zeros_like(p)) + (1 - second) * d * d
    kept["exp_avg_sq"] = square
    p *= 1 - lr * decay
    corrected = kept["exp_avg"] / (1 - first**age)
    p -= lr * corrected / ((square / (1 - second**age)).sqrt() + eps)


def _rate(epoch: int, lr: float, epochs: int, warmup: int) -> float:
    if epoch < warmup:
        return lr * (epoch + 0.5) / warmup
    return lr * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2


#: Moments of the perspective, and its parameters that start at zero.
SUMS_OF_GRADIENTS = re.compile(
    r"/(momentum_buffer|exp_avg|exp_avg_sq)/perspective\."
    r"|^[^/]+/perspective\.(mlp\.linears\.(0\.weights|\d+\.biases)\.|monitor\.angle$)"
)


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference over largest magnitude, of all tensors by name.

    Tensors that are zero but for rounding are compared with 1e-6 as their magnitude; squares of
    gradients (`exp_avg_sq`) with its square. Moments of the perspective, and its parameters that
    start at zero and so are sums of moments, are compared with ten times their magnitude: where
    rounding moves a sample over the edge of a pixel, the gradient jumps, and the terms of its sum
    over all pixels and frames nearly cancel. One kind of CPU differs from another by up to 7e-5 of
    them.
    """
    assert set(ours) == set(theirs)
    worst = 0.0
    for name, theirs_ in theirs.items():
        least = 1e-12 if "/exp_avg_sq/" in name else 1e-6
        scale = theirs_.abs().max().clamp(min=least)
        if SUMS_OF_GRADIENTS.search(name):
            scale = 10 * scale
        worst = max(worst, float((ours[name] - theirs_).abs().max() / scale))
    return worst
