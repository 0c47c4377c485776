"""Reading neurons out of a feature map: one small matrix product for each pixel.

A neuron's output is a bilinear mean of four pixels, weighted over the channels. So each neuron
asks four pixels for the product of their channels with its weights. Sorted by pixel, that is a
product of matrices a pixel: the weights of those who ask by the pixel's channels in all frames. No
tensor of neurons by channels by frames is made, and it takes a fraction of the time of sampling.

Pixels that many neurons look at are split into *tiles* of a fixed number of neurons, and tiles are
filled up with nothing. Thus the shapes depend on the sizes alone, never on the positions, so that
nothing has to wait for a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

#: Least and largest number of neurons of a tile.
SIZES = 8, 64
#: Numbers of the feature map that are laid out for all tiles at a time, by kind of device: what
#: stays in a CPU's caches; on a GPU what is little beside its memory.
AT_A_TIME = {"cpu": 1 << 22}
OTHERWISE = 1 << 27
#: Frames that are worth a matrix product, even if they are more than that.
LEAST_FRAMES = 16


def corners(position: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each position, and what each counts in a bilinear mean.

    Positions beyond the centres of the outer pixels see the border.

    Args:
        position: [..., 2] x and y, -1 to 1 across the map.
        height: of the map, pixels.
        width: of the map, pixels.

    Returns:
        Indices of pixels [..., 4], row by row, and their shares [..., 4].
    """
    x, y = position.unbind(-1)
    # Near a border, the last but one pixel is the first of the pair, and counts nothing.
    (left, right_share), (top, bottom_share) = _pair(x, width), _pair(y, height)
    right, below = min(width - 1, 1), width * min(height - 1, 1)
    first = top * width + left
    pixels = torch.stack([first, first + right, first + below, first + below + right], dim=-1)
    left_share, top_share = 1 - right_share, 1 - bottom_share
    shares = [
        left_share * top_share,
        right_share * top_share,
        left_share * bottom_share,
        right_share * bottom_share,
    ]
    return pixels, torch.stack(shares, dim=-1)


def _pair(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The first of the two pixels on either side of each coordinate, and the second's share."""
    at = (((x + 1) * size - 1) / 2).clamp(0, size - 1)
    first = at.detach().floor().clamp(max=max(size - 2, 0))
    return first.long(), at - first


@dataclass(frozen=True)
class Tiles:
    """Neurons by the pixels that they look at.

    Attributes:
        pixels: [N, U, 4] of each neuron, counted over the samples: sample * area + pixel.
        places: [N, U, 4] where each of them is found among the places of the tiles.
        count: of tiles, M.
        size: neurons of a tile.
    """

    pixels: Tensor
    places: Tensor
    count: int
    size: int

    def of_pixels(self) -> tuple[Tensor, Tensor]:
        """The pixel of each tile [M], and the neuron in each place [M * size].

        The neurons' number stands for an empty place, and any pixel is that of an empty tile.
        """
        units = self.places.shape[1]
        places, pixels = self.places.flatten(), self.pixels.flatten()
        pixel = pixels.new_zeros(self.count).scatter(0, places // self.size, pixels)
        neurons = torch.arange(units, device=places.device)[None, :, None]
        neurons = neurons.expand_as(self.places).flatten()
        unit = torch.full((self.count * self.size,), units, device=places.device)
        return pixel, unit.scatter(0, places, neurons)


def sort(pixels: Tensor, area: int) -> Tiles:
    """Sort neurons by pixel.

    Args:
        pixels: [N, U, 4] from 0 to `area`.
        area: pixels of a map.
    """
    samples, device, count = len(pixels), pixels.device, pixels.numel()
    # The power of two next to the neurons that look at a pixel, if they are spread evenly.
    size = 2 ** round(math.log2(max(count / (samples * area), 1)))
    size = min(max(size, SIZES[0]), SIZES[1])
    pixels = pixels + area * torch.arange(samples, device=device)[:, None, None]
    ranked, order = pixels.flatten().sort(stable=True)
    first = torch.searchsorted(ranked, torch.arange(samples * area + 1, device=device))
    tiles = -(-first.diff() // size)  # of each pixel
    before = tiles.cumsum(0) - tiles
    rank = torch.arange(count, device=device) - first[ranked]  # among those of the same pixel
    places = torch.empty_like(ranked).scatter(0, order, before[ranked] * size + rank)
    # As many tiles as there can be, wherever the neurons look.
    most = count // size + samples * area
    return Tiles(pixels, places.view_as(pixels), most, size)


def read(core: Tensor, tiles: Tiles, shares: Tensor, weights: Tensor) -> Tensor:
    """Products of the features at each neuron's position with its weights.

    Args:
        core: [N, C, T, h, w].
        tiles: of the neurons' pixels.
        shares: [N, U, 4] of these pixels.
        weights: [U, C].

    Returns:
        [N, T, U]
    """
    out: Tensor = _Read.apply(
        core, shares, weights, tiles.pixels, tiles.places, (tiles.count, tiles.size)
    )
    return out


def _blocks(core: Tensor, tiles: int) -> list[tuple[int, int]]:
    """First and last frames of the blocks in which a sequence is read."""
    channels, frames = core.shape[1:3]
    budget = AT_A_TIME.get(core.device.type, OTHERWISE)
    length = max(budget // (tiles * channels), LEAST_FRAMES)
    return [(start, min(start + length, frames)) for start in range(0, frames, length)]


def _of_tiles(core: Tensor, pixel: Tensor) -> Tensor:
    """The features [N, C, T, h, w] at each tile's pixel, [M, C, T]."""
    table = core.permute(0, 3, 4, 1, 2).flatten(0, 2)
    return table[pixel]


def _rows(weights: Tensor, unit: Tensor, like: Tensor) -> Tensor:
    """The weights [U, C] in the places of the tiles, [M * size, C]; zeros in empty places."""
    padded = F.pad(weights.to(like.dtype), (0, 0, 0, 1))
    return padded[unit]


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        core: Tensor,
        shares: Tensor,
        weights: Tensor,
        pixels: Tensor,
        places: Tensor,
        sizes: tuple[int, int],
    ) -> Tensor:
        pixel, unit = Tiles(pixels, places, *sizes).of_pixels()
        rows = _rows(weights, unit, core).unflatten(0, (len(pixel), -1))
        seen = core.new_empty((*places.shape, core.shape[2]))  # [N, U, 4, T]
        for start, end in _blocks(core, len(pixel)):
            of_tiles = _of_tiles(core[:, :, start:end], pixel)
            seen[..., start:end] = torch.bmm(rows, of_tiles).flatten(0, 1)[places]
        ctx.sizes = sizes
        ctx.save_for_backward(core, shares, weights, pixels, places, seen)
        return torch.einsum("nukt,nuk->ntu", seen, shares.to(seen.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        core, shares, weights, pixels, places, seen = ctx.saved_tensors
        pixel, unit = Tiles(pixels, places, *ctx.sizes).of_pixels()
        samples, channels, _, height, width = core.shape
        of_core = torch.empty_like(core)
        of_shares = torch.einsum("nukt,ntu->nuk", seen, gradient)
        rows = _rows(weights, unit, core).unflatten(0, (len(pixel), -1))
        of_rows = torch.zeros_like(rows)
        for start, end in _blocks(core, len(pixel)):
            part = gradient[:, start:end].transpose(1, 2)[:, :, None]  # [N, U, 1, t]
            asked = part.new_zeros(len(unit), end - start)
            asked[places.flatten()] = (part * shares[..., None]).flatten(0, 2)
            asked = asked.unflatten(0, (len(pixel), -1))  # [M, size, t]
            of_tiles = _of_tiles(core[:, :, start:end], pixel)
            of_rows.baddbmm_(asked, of_tiles.transpose(1, 2))
            of_table = core.new_zeros(samples * height * width, channels, end - start)
            of_table.index_add_(0, pixel, torch.bmm(rows.transpose(1, 2), asked))
            of_table = of_table.unflatten(0, (samples, height, width))
            of_core[:, :, start:end] = of_table.permute(0, 3, 4, 1, 2)
        flat = of_rows.flatten(0, 1)
        of_weights = torch.zeros_like(flat[: len(weights)])  # [U, C]
        for one in places:  # of a sample
            of_weights += flat[one].sum(dim=1)
        return of_core, of_shares.to(shares.dtype), of_weights, None, None, None
