"""Time, processor time and memory of what a benchmark calls, on a CPU or a GPU."""

from __future__ import annotations

import ctypes
import gc
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

#: Side of the matrices whose product gives the matrix rate, by kind of device.
SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass
class Timing:
    """What each call of something took.

    Attributes:
        seconds: of wall clock.
        user: seconds of all cores in the program.
        kernel: seconds of all cores in the kernel.
        peak: bytes on top of what was there before, of one more call.
    """

    seconds: list[float] = field(default_factory=list)
    user: list[float] = field(default_factory=list)
    kernel: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def median(self) -> float:
        """Of the wall clock, seconds."""
        return statistics.median(self.seconds)

    @property
    def work(self) -> float:
        """Median processor time, seconds."""
        return statistics.median(u + k for u, k in zip(self.user, self.kernel, strict=True))

    def cells(self) -> list[str]:
        """For a table: median and range in ms, user and kernel time in ms, peak in MiB."""
        return [
            f"{self.median * 1e3:.1f}",
            f"{min(self.seconds) * 1e3:.1f}-{max(self.seconds) * 1e3:.1f}",
            f"{statistics.median(self.user) * 1e3:.0f} + "
            f"{statistics.median(self.kernel) * 1e3:.0f}",
            f"{self.peak / 2**20:.0f}",
        ]


#: Titles of `Timing.cells`.
CELLS = ["median ms", "range", "user + kernel ms", "peak MiB"]


def wait(device: torch.device) -> None:
    """Until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(call: Callable[[], object], device: torch.device, timing: Timing) -> None:
    """Call it once and add what that took."""
    wait(device)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    call()
    wait(device)
    timing.seconds.append(time.perf_counter() - began)
    after = resource.getrusage(resource.RUSAGE_SELF)
    timing.user.append(after.ru_utime - before.ru_utime)
    timing.kernel.append(after.ru_stime - before.ru_stime)


def alternate(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int,
    warm: int = 1,
    memory: bool = True,
) -> dict[str, Timing]:
    """Call several things in turns, so that all suffer the same noise of the machine.

    Args:
        calls: by name.
        device: that is waited for.
        repeats: turns that count.
        warm: turns before that do not.
        memory: whether to measure peaks, in one more turn.
    """
    found = {name: Timing() for name in calls}
    for turn in range(-warm, repeats):
        for name, call in calls.items():
            once(call, device, found[name] if turn >= 0 else Timing())
    if memory:
        for name, call in calls.items():
            found[name].peak = peak(call, device)
    return found


def peak(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes that a call holds at a time, on top of what is held before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed would not count when used again
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of a large matrix product, on random values."""
    side = SIDE[device.type]
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    with arithmetic(precision):
        timing = alternate({"product": lambda: a @ b}, device, repeats=7, warm=3, memory=False)
    return float(2 * side**3 / timing["product"].median)


class arithmetic:
    """A context in which float32 products use TensorFloat-32 (`tf32`) or do not (all others)."""

    def __init__(self, precision: str) -> None:
        self.tf32 = precision == "tf32"

    def __enter__(self) -> None:
        self._set(self.tf32)

    def __exit__(self, *exception: object) -> None:
        self._set(False)

    def _set(self, on: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as the documentation has it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(device: torch.device) -> str:
    """The device and the versions, in a line."""
    name = "CPU, " + str(torch.get_num_threads()) + " threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        name += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
        name += f", {model}"
    return f"{name}, PyTorch {torch.__version__}"
