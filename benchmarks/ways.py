"""Ways to compute what costs most, side by side: the readout, and the core on a GPU.

    python benchmarks/ways.py --device cuda

Forward and backward of each way, with the same inputs; those of the readout must agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from measure import CELLS, alternate, arithmetic, machine, markdown
from torch import Tensor, nn
from torch.nn import functional as F

from fmcortex.model.network import Network
from fmcortex.model.sizes import preset
from fmcortex.model.tiles import corners, read, sort


class Problem:
    """A readout's inputs: core [N, C, T, h, w], positions [N, U, 2], weights [U, C].

    Args:
        arguments: of the command line.
        dtype: of the core.
    """

    def __init__(self, arguments: argparse.Namespace, dtype: torch.dtype = torch.float32) -> None:
        config = preset(arguments.model)
        height, width = config.core_size()
        self.device = torch.device(arguments.device)
        torch.manual_seed(0)
        n, c, t, u = arguments.batch, config.recurrent_out, arguments.frames, arguments.units
        self.core = torch.randn(n, c, t, height, width).to(self.device, dtype).requires_grad_()
        position = torch.tanh(0.4 * torch.randn(n, u, 2))
        self.position = position.to(self.device).requires_grad_()
        self.weights = torch.randn(u, c).to(self.device).requires_grad_()
        self.gradient = torch.randn(n, t, u, device=self.device)

    def run(self, way: Callable[..., Tensor]) -> list[Tensor]:
        """Its outputs and gradients."""
        out = way(self.core, self.position, self.weights)
        inputs = [self.core, self.position, self.weights]
        return [out, *torch.autograd.grad(out, inputs, self.gradient)]


def channels_and_frames(core: Tensor, position: Tensor, weights: Tensor) -> Tensor:
    """Frames as channels of one sampling."""
    frames = core.shape[2]
    grid = position[:, :, None].to(core.dtype)
    found = F.grid_sample(core.flatten(1, 2), grid, padding_mode="border", align_corners=False)
    found = found[..., 0].unflatten(1, (-1, frames)).float()
    return torch.einsum("nctu,uc->ntu", found, weights)


def frames_as_batch(core: Tensor, position: Tensor, weights: Tensor) -> Tensor:
    """Frames as samples of one sampling."""
    samples, _, frames = core.shape[:3]
    grid = position[:, None, :, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
    flat = core.transpose(1, 2).flatten(0, 1)
    found = F.grid_sample(flat, grid.to(core.dtype), padding_mode="border", align_corners=False)
    return torch.einsum("bcu,uc->bu", found[..., 0].float(), weights).unflatten(0, (samples, -1))


def tiles(core: Tensor, position: Tensor, weights: Tensor) -> Tensor:
    """One small matrix product a pixel: what the network does."""
    pixels, shares = corners(position, *core.shape[-2:])
    return read(core, sort(pixels, core.shape[-2] * core.shape[-1]), shares, weights)


def bags(core: Tensor, position: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of four rows of a table a frame."""
    samples, channels, _, height, width = core.shape
    pixels, shares = corners(position, height, width)
    sample = torch.arange(samples, device=core.device)[:, None, None]
    index = (pixels + sample * height * width).flatten(0, 1)
    out = []
    for frame in core.unbind(2):  # [N, C, h, w]
        table = frame.permute(0, 2, 3, 1).reshape(-1, channels)
        seen = F.embedding_bag(
            index, table, mode="sum", per_sample_weights=shares.flatten(0, 1).to(table.dtype)
        )
        out.append((seen.float().view(samples, -1, channels) * weights).sum(-1))
    return torch.stack(out, 1)


def readouts(arguments: argparse.Namespace) -> list[list[str]]:
    """The ways of the readout."""
    rows = []
    ways = {
        "frames as channels": channels_and_frames,
        "frames as batch": frames_as_batch,
        "tiles of a pixel": tiles,
        "embedding bags": bags,
    }
    for precision in ("float32", "tf32") if arguments.device == "cuda" else ("float32",):
        problem = Problem(arguments)
        with arithmetic(precision):
            wanted = problem.run(channels_and_frames)
            for name, way in ways.items():
                apart = [
                    float(((a - b).abs().max() / b.abs().max()).detach())
                    for a, b in zip(problem.run(way), wanted, strict=True)
                ]
                told = " ".join(f"{x:.0e}" for x in apart)
                print(f"  {name}, {precision}: differences {told}", flush=True)
            calls = {name: partial(problem.run, way) for name, way in ways.items()}
            found = alternate(calls, problem.device, 5)
        rows += [[f"readout, {name}", precision, *found[name].cells()] for name in ways]
    return rows


class OneStream(nn.Module):
    """The shared part on one stream, as a module of two inputs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.shared = network.shared

    def forward(self, retina: Tensor, behaviour: Tensor) -> Tensor:
        """As `SharedPart.forward` without noise."""
        return self.shared(retina, behaviour, 0)


def cores(arguments: argparse.Namespace) -> list[list[str]]:
    """The ways to run the shared part: as it is, and captured as one graph of a GPU."""
    device = torch.device(arguments.device)
    rows = []
    for model in dict.fromkeys([arguments.model, arguments.other]):
        config = preset(model)
        for precision in ("float32", "tf32", "bf16") if device.type == "cuda" else ("float32",):
            torch.manual_seed(0)
            network = Network.build(config, 8).to(device)
            for name, p in network.named_parameters():
                p.requires_grad_(".weights." not in name or name.endswith(".0"))
            size = arguments.batch, arguments.frames, config.retina_height, config.retina_width
            retina = torch.rand(size, device=device, requires_grad=True)
            features = config.modulation_features
            behaviour = torch.randn(
                arguments.batch, features, arguments.frames, device=device, requires_grad=True
            )
            module = OneStream(network)
            trained = [p for p in module.parameters() if p.requires_grad]

            def eager(
                module: nn.Module = module,
                inputs: tuple[Tensor, ...] = (retina, behaviour),
                trained: list[Tensor] = trained,
                bf16: bool = precision == "bf16",
            ) -> None:
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    out = module(*inputs)
                gradient = torch.ones_like(out)
                torch.autograd.grad(out, [*inputs, *trained], gradient, allow_unused=True)

            calls = {"as it is": eager}
            with arithmetic(precision):
                if device.type == "cuda":
                    calls |= captured(module, eager)
                for name, call in calls.items():
                    try:
                        found = alternate({name: call}, device, 5, warm=2)
                    except RuntimeError as error:
                        print(f"  {model}, {precision}, {name}: {str(error)[:200]}", flush=True)
                        continue
                    rows.append([f"core of {model}, {name}", precision, *found[name].cells()])
                    print("  " + " | ".join(rows[-1]), flush=True)
                torch.backends.cudnn.benchmark = False
    return rows


def captured(module: nn.Module, eager: Callable[[], None]) -> dict[str, Callable[[], None]]:
    """The same step replayed as one graph, and with kernels chosen by trial."""

    def tried() -> None:
        torch.backends.cudnn.benchmark = True
        eager()

    graph = torch.cuda.CUDAGraph()
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            eager()
            eager()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            eager()
    except RuntimeError as error:
        print(f"  not captured: {str(error)[:300]}", flush=True)
        return {"kernels by trial": tried}
    return {"one graph": graph.replay, "kernels by trial": tried}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--model", default="paper")
    parser.add_argument("--other", default="paper-convlstm", help="another model for the core")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=70)
    parser.add_argument("--units", type=int, default=8000)
    parser.add_argument("--parts", default="readout,core")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and arguments.model == "tiny":
        arguments.other = "tiny"
    rows = []
    if "readout" in arguments.parts:
        rows += readouts(arguments)
    if "core" in arguments.parts:
        rows += cores(arguments)
    print(f"\nForward and backward ({machine(torch.device(arguments.device))})\n")
    print(markdown(["what", "arithmetic", *CELLS], rows))


if __name__ == "__main__":
    main()
