"""Reading neurons out pixel by pixel gives what bilinear sampling gives, from less memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fmcortex.model import tiles
from fmcortex.model.tiles import corners, read, sort


def sampled(core: Tensor, position: Tensor, weights: Tensor) -> Tensor:
    """PyTorch's sampling of all channels in all frames, then the weighted sum."""
    frames = core.shape[2]
    seen = F.grid_sample(
        core.flatten(1, 2), position[:, :, None], padding_mode="border", align_corners=False
    )
    return torch.einsum("nctu,uc->ntu", seen[..., 0].unflatten(1, (-1, frames)), weights)


def by_pixel(core: Tensor, position: Tensor, weights: Tensor) -> Tensor:
    """What the readout does."""
    height, width = core.shape[-2:]
    pixels, shares = corners(position, height, width)
    return read(core, sort(pixels, height * width), shares, weights)


def inputs(
    samples: int, channels: int, frames: int, height: int, width: int, units: int, spread: float
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(units + height)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return [
        values(samples, channels, frames, height, width).requires_grad_(),
        (values(samples, units, 2) * spread).requires_grad_(),
        values(units, channels).requires_grad_(),
    ]


@pytest.mark.parametrize("block", [1, 1 << 22])
@pytest.mark.parametrize(
    ("samples", "channels", "frames", "height", "width", "units", "spread"),
    [
        (1, 3, 4, 5, 7, 1, 0.5),
        (2, 5, 21, 4, 6, 40, 0.5),
        (3, 2, 17, 3, 4, 300, 0.001),  # all look at the same pixels: many tiles of few of them
        (2, 4, 3, 4, 4, 60, 2.0),  # many beyond the border
        (1, 4, 3, 1, 6, 9, 0.7),
        (1, 4, 3, 6, 1, 9, 0.7),
        (2, 4, 3, 1, 1, 9, 0.7),
    ],
)
def test_it_is_bilinear_sampling(
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    samples: int,
    channels: int,
    frames: int,
    height: int,
    width: int,
    units: int,
    spread: float,
) -> None:
    monkeypatch.setattr(tiles, "AT_A_TIME", {"cpu": block})
    monkeypatch.setattr(tiles, "LEAST_FRAMES", 2)
    given = inputs(samples, channels, frames, height, width, units, spread)
    one, two = by_pixel(*given), sampled(*given)
    torch.testing.assert_close(one, two)
    gradient = torch.randn(two.shape, generator=torch.Generator().manual_seed(0)).double()
    for a, b in zip(
        torch.autograd.grad(one, given, gradient),
        torch.autograd.grad(two, given, gradient),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_the_same_bits_again() -> None:
    given = [x.detach().float().requires_grad_() for x in inputs(2, 8, 30, 6, 9, 200, 0.5)]
    found = []
    for _ in range(2):
        out = by_pixel(*given)
        found.append([out, *torch.autograd.grad(out.square().sum(), given)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Largest(TorchDispatchMode):
    """The largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return out


def test_no_tensor_of_neurons_by_channels_by_frames() -> None:
    samples, channels, frames, units = 1, 64, 64, 3000
    given = inputs(samples, channels, frames, 8, 12, units, 0.4)
    with Largest() as largest:
        by_pixel(*given).sum().backward()
    assert largest.numel < 0.2 * samples * channels * frames * units
