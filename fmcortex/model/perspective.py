"""The perspective: what falls on the retina of an eye that looks at a flat monitor.

A ray leaves each retina pixel, turns with the eye, meets the monitor's plane, and samples the
frame there (Wang et al. 2025, Methods, "Perspective network").
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from fmcortex.model.layers import MLP
from fmcortex.model.parameters import Rule, ruled
from fmcortex.model.sizes import ModelConfig

_FREE = Rule(decay=False)


def rotation(angles: Tensor) -> Tensor:
    """Rotation matrices R = Rz Ry Rx.

    Args:
        angles: [..., 3] radians about the axes x, y, z.

    Returns:
        [..., 3, 3]
    """
    cos_x, cos_y, cos_z = angles.cos().unbind(-1)
    sin_x, sin_y, sin_z = angles.sin().unbind(-1)
    entries = [
        cos_z * cos_y,
        cos_z * sin_y * sin_x - sin_z * cos_x,
        cos_z * sin_y * cos_x + sin_z * sin_x,
        sin_z * cos_y,
        sin_z * sin_y * sin_x + cos_z * cos_x,
        sin_z * sin_y * cos_x - cos_z * sin_x,
        -sin_y,
        cos_y * sin_x,
        cos_y * cos_x,
    ]
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def retina_rays(height: int, width: int, degrees: float) -> Tensor:
    """Unit vectors [height, width, 3] along which the retina's pixels look, the eye at rest.

    Args:
        height: pixels.
        width: pixels.
        degrees: the angle to the optical axis at the left and right edges.
    """
    edge = (width - 1) / width
    x = torch.linspace(-1, 1, width) * edge
    y = torch.linspace(-1, 1, height) * height / width * edge
    y, x = torch.meshgrid(y, x, indexing="ij")
    r = (torch.sqrt(x**2 + y**2) * math.radians(degrees)).clip(0, math.pi / 2)
    theta = torch.atan2(y, x)
    return torch.stack([r.sin() * theta.cos(), r.sin() * theta.sin(), r.cos()], dim=-1)


class MonitorPixel(nn.Module):
    """Luminance of monitor pixels: a fixed power law."""

    power: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("power", torch.tensor(1.7))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("offset", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape, in [0, 1]."""
        return x**self.power * self.scale + self.offset


class RetinaPixel(nn.Module):
    """Response of retina pixels: a learned power law."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = ruled(torch.zeros(1), _FREE)
        self.scale = ruled(torch.ones(1), _FREE)
        self.offset = ruled(torch.zeros(1), _FREE)

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape, not negative."""
        return (x + 1e-5) ** torch.sigmoid(self.logit) * self.scale + self.offset


class Monitor(nn.Module):
    """The monitor's plane: its centre and orientation in the coordinates of the eye's socket."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.center = ruled(torch.tensor([0.0, 0.0, 0.5]), _FREE)
        self.angle = ruled(torch.zeros(3), _FREE)
        self.center_std = ruled(torch.full((3,), std), _FREE)
        self.angle_std = ruled(torch.full((3,), std), _FREE)

    def position(self, samples: int, noise: Generator | None) -> tuple[Tensor, Tensor]:
        """Centre [N, 3] and axes [N, 3, 3] (columns X, Y, Z), jittered where `noise` is given."""
        center = self.center.expand(samples, -1)
        angle = self.angle.expand(samples, -1)
        if noise is not None:
            drawn = torch.randn(samples, 2, 3, generator=noise).to(self.center)
            center = center + self.center_std * drawn[:, 0]
            angle = angle + self.angle_std * drawn[:, 1]
        return center, rotation(angle)


class Perspective(nn.Module):
    """Frames on the monitor and pupil positions to frames on the retina."""

    rays: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.padding = "zeros" if config.periphery == "dark" else "border"
        self.monitor = Monitor(config.monitor_std)
        self.monitor_pixel = MonitorPixel()
        self.retina_pixel = RetinaPixel()
        self.mlp = MLP(config.perspectives, config.eye_features, config.eye_layers, outputs=3)
        rays = retina_rays(config.retina_height, config.retina_width, config.retina_degrees)
        self.register_buffer("rays", rays, persistent=False)

    def grid(
        self, pupil: Tensor, height: int, width: int, noise: Generator | None = None
    ) -> Tensor:
        """Where each retina pixel looks on the monitor, as `grid_sample` wants it.

        Args:
            pupil: [N, T, P] standardised pupil positions.
            height: of the monitor's frames, pixels.
            width: of the monitor's frames, pixels.
            noise: draws the jitter of the monitor's position in training.

        Returns:
            [N, T, H', W', 2]: x and y, -1 to 1 across the monitor.
        """
        samples = pupil.shape[0]
        eye = rotation(self.mlp(pupil.transpose(1, 2)).transpose(1, 2))  # [N, T, 3, 3]
        rays = torch.einsum("ntij,hwj->nthwi", eye, self.rays)  # [N, T, H', W', 3]
        center, axes = self.monitor.position(samples, noise)
        normal = axes[..., 2]
        distance = (normal * center).sum(-1)[:, None, None, None, None]
        facing = torch.einsum("nthwi,ni->nthw", rays, normal).clip(min=1e-5)[..., None]
        offset = rays * (distance / facing) - center[:, None, None, None]
        plane = torch.einsum("nthwi,nij->nthwj", offset, axes[..., :2])
        rows, columns = self.rays.shape[:2]
        # Factor by factor, in the authors' order: a sample on a pixel's edge must not change sides.
        x, y = plane.unbind(-1)
        x = x * (width / (width - 1)) * (columns - 1) / columns
        y = y * width / height * (width / (width - 1)) * (rows - 1) / rows
        return torch.stack([x, y], dim=-1)

    def forward(self, stimuli: Tensor, pupil: Tensor, noise: Generator | None = None) -> Tensor:
        """The retina's view.

        Args:
            stimuli: [N, T, H, W] in [0, 1].
            pupil: [N, T, P] standardised pupil positions.
            noise: draws the monitor's jitter in training; None in evaluation.

        Returns:
            [N, T, H', W']
        """
        samples, frames, height, width = stimuli.shape
        grid = self.grid(pupil, height, width, noise).flatten(0, 1)
        luminance = self.monitor_pixel(stimuli).flatten(0, 1)[:, None]  # [N*T, 1, H, W]
        seen = F.grid_sample(
            luminance, grid, mode="bilinear", padding_mode=self.padding, align_corners=False
        )
        return self.retina_pixel(seen[:, 0]).unflatten(0, (samples, frames))
