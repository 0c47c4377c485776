"""The load of this machine, sampled from a thread into metrics of an MLflow run.

The names are those of MLflow's own monitor, so that its UI shows them. That monitor ends at the
first request that fails, and at once in a run that was resumed and is not marked as running; this
one goes on. The step of a sample is the second of the run, which is the same on every machine and
goes on after a restart.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fmcortex.tracking.run import RunLog

#: Samples that wait for a store that does not answer; then the oldest are given up.
WAITING = 100
#: Seconds that the end of a run waits for a store that does not answer.
PATIENCE = 5.0
MEGABYTE = 1e6


@contextmanager
def system_metrics(run: RunLog, every_seconds: float, node: str | None = None) -> Iterator[None]:
    """Log this machine's load as `system/...` while the block runs.

    A store that fails costs samples, never the block.

    Args:
        run: of which they are metrics.
        every_seconds: between samples; 0 for none at all.
        node: the machine's name, which becomes part of the metrics' names; None where there is
            only one machine.
    """
    if not every_seconds:
        yield
        return
    sampler = Sampler(run, every_seconds, node)
    sampler.start()
    try:
        yield
    finally:
        sampler.stop()


class Machine:
    """Reads the load of this machine; rates are since the reading before."""

    def __init__(self) -> None:
        import psutil

        self.psutil = psutil
        self.gpus = _gpus()
        psutil.cpu_percent()  # the first reading has nothing to compare with
        self.began = self.before = self._network()
        self.at = time.monotonic()

    def _network(self) -> tuple[float, float]:
        counters = self.psutil.net_io_counters()
        if counters is None:  # a container without any network
            return 0.0, 0.0
        return counters.bytes_recv / MEGABYTE, counters.bytes_sent / MEGABYTE

    def read(self) -> dict[str, float]:
        """What can be read of it, by the metric's name."""
        memory = self.psutil.virtual_memory()
        disk = self.psutil.disk_usage(os.sep)
        found = {
            "cpu_utilization_percentage": self.psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / MEGABYTE,
            "disk_available_megabytes": disk.free / MEGABYTE,
        }
        network, now = self._network(), time.monotonic()
        passed = max(now - self.at, 1e-3)
        for i, way in enumerate(("receive", "transmit")):
            found[f"network_{way}_megabytes"] = network[i] - self.began[i]
            found[f"network_{way}_megabytes_per_second"] = (network[i] - self.before[i]) / passed
        self.before, self.at = network, now
        for gpu in self.gpus:
            found |= gpu()
        return found


def _gpus() -> list[Callable[[], dict[str, float]]]:
    """A reader for each NVIDIA GPU; none where NVML is missing.

    NVML rather than torch: asking torch would take memory of the GPU for this process.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # not installed, no driver, no device: all mean that there is nothing to read
        return []
    return [_gpu(pynvml, i, handle) for i, handle in enumerate(handles)]


def _gpu(nvml: Any, index: int, handle: Any) -> Callable[[], dict[str, float]]:
    def memory() -> dict[str, float]:
        read = nvml.nvmlDeviceGetMemoryInfo(handle)
        return {
            "memory_usage_megabytes": read.used / MEGABYTE,
            "memory_usage_percentage": 100 * read.used / read.total,
        }

    def use() -> dict[str, float]:
        return {"utilization_percentage": nvml.nvmlDeviceGetUtilizationRates(handle).gpu}

    def power() -> dict[str, float]:
        watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        most = nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
        return {"power_usage_watts": watts, "power_usage_percentage": 100 * watts / most}

    def read() -> dict[str, float]:
        found: dict[str, float] = {}
        for part in (memory, use, power):
            try:
                found |= {f"gpu_{index}_{name}": value for name, value in part().items()}
            except nvml.NVMLError:  # some cards, and parts of cards, do not tell everything
                continue
        return found

    return read


class Sampler:
    """The thread that samples and sends.

    Args:
        run: of which they are metrics.
        every: seconds between samples.
        node: part of the metrics' names; None for none.
        machine: what is read; None for this machine.
    """

    def __init__(
        self, run: RunLog, every: float, node: str | None = None, machine: Machine | None = None
    ) -> None:
        self.run, self.every = run, every
        # MLflow takes few characters in a name, and a slash would be one more level.
        self.prefix = "system/" + (re.sub(r"[^\w.-]", "_", node) + "/" if node else "")
        self.machine = machine or Machine()
        self.waiting: list[list[Any]] = []
        self.warned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="system-metrics", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Sample once more, send what waits and end; a store that hangs is left to itself."""
        self._stop.set()
        self._thread.join(PATIENCE)

    def _loop(self) -> None:
        started: float | None = None
        last = False
        while not last:
            last = self._stop.wait(self.every)
            try:
                now = time.time()
                if started is None:
                    started = self.run.client.get_run(self.run.run_id).info.start_time / 1000
                self.waiting.append(self._sample(now, started))
                self._send()
            except Exception as error:  # of the store or of the machine: not worth a run
                self._warn(error)

    def _sample(self, now: float, started: float) -> list[Any]:
        from mlflow.entities import Metric

        step = max(int(now - started), 0)
        return [
            Metric(self.prefix + name, float(value), int(now * 1000), step)
            for name, value in self.machine.read().items()
        ]

    def _send(self) -> None:
        del self.waiting[:-WAITING]
        while self.waiting:
            self.run.client.log_batch(self.run.run_id, metrics=self.waiting[0])
            del self.waiting[0]

    def _warn(self, error: Exception) -> None:
        if not self.warned:
            self.warned = True
            line = " ".join(str(error).split())[:200]
            print(f"system metrics: cannot be recorded for now: {line}", file=sys.stderr)
