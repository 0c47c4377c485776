"""The dense feedforward part of the core (spec: Wang et al. 2025, Methods, "Core")."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Generator, Tensor, nn
from torch.nn import functional as F

from fmcortex.model.layers import Conv, cat_groups, channel_mask, draw_kept, nonlinearity, run
from fmcortex.model.past import Past
from fmcortex.model.sizes import ModelConfig


class Block(nn.Module):
    """Densely connected causal 3-D convolutions, each with a skip from all before it."""

    def __init__(
        self, channels: int, groups: int, layers: int, temporal: int, spatial: int, streams: int
    ) -> None:
        super().__init__()
        self.channels, self.groups, self.layers = channels, groups, layers
        self.convs, self.skips = nn.ModuleList(), nn.ModuleDict()
        for layer in range(layers):
            gain = 1.0 if layer == 0 else 2**-0.5
            self.convs.append(
                Conv(
                    channels,
                    channels,
                    streams=streams,
                    groups=groups,
                    out_groups=groups,
                    temporal=temporal,
                    spatial=spatial,
                    gain=gain,
                )
            )
            if layer > 0:  # keyed by layer, as in the released weights: there is no skips.0
                self.skips[str(layer)] = Conv(
                    channels * layer,
                    channels,
                    streams=streams,
                    groups=groups,
                    out_groups=groups,
                    gain=gain,
                    bias=None,
                )

    def forward(
        self,
        x: Tensor,
        stream: int | None,
        streams: int,
        dropout: float,
        kept: Sequence[Tensor | None],
        past: Past | None = None,
    ) -> Tensor:
        """x [N, S*channels, T, H, W] to [N, S*(layers+1)*channels, T, H, W].

        `kept` are the channels [N, S*channels] that each layer keeps of its input.
        """
        groups = self.groups * streams
        out, seen = x, x  # `seen` is replaced in the first layer
        for layer, conv in enumerate(self.convs):
            y = nonlinearity(x)
            mask = channel_mask(kept[layer], dropout, y)
            if mask is not None:
                y = y * mask[:, :, None, None, None]
            if layer == 0:
                x, seen = conv(y, stream, past), y
            else:
                x = conv(y, stream, past) + self.skips[str(layer)](seen, stream, past)
                if layer + 1 < self.layers:
                    seen = cat_groups([seen, y], groups)
            out = cat_groups([out, x], groups)
        return out


class Feedforward(nn.Module):
    """Retina to features: [N, T, H', W'] to [N, S*out, T, h, w], all frames at once."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.streams, self.pools, self.dropout = config.streams, config.block_pools, config.dropout
        self.sizes = list(zip(config.block_channels, config.block_layers, strict=True))
        self.recompute = False  # see SharedPart.checkpoint_activations
        self.inputs, self.blocks = nn.ModuleList(), nn.ModuleList()
        features = 1
        for i, channels in enumerate(config.block_channels):
            groups = config.block_groups[i]
            if i == 0:
                conv = Conv(
                    1,
                    channels,
                    streams=config.streams,
                    out_groups=groups,
                    spatial=config.input_spatial,
                    stride=config.input_stride,
                    replicate=True,
                    plain=True,
                )
            else:
                conv = Conv(
                    features, channels, streams=config.streams, out_groups=groups, replicate=True
                )
            self.inputs.append(conv)
            self.blocks.append(
                Block(
                    channels,
                    groups,
                    config.block_layers[i],
                    config.block_temporals[i],
                    config.block_spatials[i],
                    config.streams,
                )
            )
            features = channels * (config.block_layers[i] + 1)
        self.out = Conv(features, config.feedforward_out, streams=config.streams, replicate=True)

    def forward(
        self,
        retina: Tensor,
        stream: int | None = None,
        noise: Generator | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Features of retina [N, T, H', W'] as [N, S*out, T, h, w]; `noise` draws the dropout."""
        streams = self.streams if stream is None else 1
        x = retina[:, None].expand(-1, streams, -1, -1, -1)  # [N, S, T, H', W']
        for i, (channels, layers) in enumerate(self.sizes):
            kept = [
                draw_kept(len(x), streams * channels, self.dropout, noise) for _ in range(layers)
            ]
            x = run(self.recompute, self._stage, x, i, stream, streams, past, *kept)
        return self.out(x, stream, past)

    def _stage(
        self,
        x: Tensor,
        i: int,
        stream: int | None,
        streams: int,
        past: Past | None,
        *kept: Tensor | None,
    ) -> Tensor:
        """Block `i` with the convolution before it and the pooling after it."""
        x = self.inputs[i](x, stream, past)
        x = self.blocks[i](x, stream, streams, self.dropout, kept, past)
        pool = self.pools[i]
        return F.avg_pool3d(x, (1, pool, pool)) if pool > 1 else x
