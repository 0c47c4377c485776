"""The machine's load in an MLflow run: right names and numbers, and no harm done."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from fmcortex.tracking import system
from fmcortex.tracking.page import Curves, curves_page, read_curves
from fmcortex.tracking.run import RunLog
from fmcortex.tracking.system import Machine, Sampler, system_metrics

#: What MLflow's own monitor calls them.
NAMES = {
    "cpu_utilization_percentage",
    "system_memory_usage_megabytes",
    "system_memory_usage_percentage",
    "disk_usage_percentage",
    "disk_usage_megabytes",
    "disk_available_megabytes",
    "network_receive_megabytes",
    "network_transmit_megabytes",
}
RATES = {"network_receive_megabytes_per_second", "network_transmit_megabytes_per_second"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def run(store: str) -> RunLog:
    return RunLog.start(store, "e", "r")


def sampled(run: RunLog) -> dict[str, float]:
    return dict(run.client.get_run(run.run_id).data.metrics)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "system-metrics"]


def test_samples_of_this_machine(run: RunLog) -> None:
    def history() -> list[Any]:
        return run.client.get_metric_history(run.run_id, "system/cpu_utilization_percentage")

    with system_metrics(run, 0.05):
        assert threads() == ["system-metrics"]
        deadline = time.monotonic() + 30
        while len(history()) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert threads() == []
    found = sampled(run)
    assert set(found) == {f"system/{name}" for name in NAMES | RATES}
    memory = psutil.virtual_memory()
    assert found["system/system_memory_usage_megabytes"] == pytest.approx(
        memory.used / 1e6, rel=0.5
    )
    assert 0 <= found["system/cpu_utilization_percentage"] <= 100
    assert len(history()) >= 3
    start = run.client.get_run(run.run_id).info.start_time
    # The step is the second of the run.
    assert all(metric.step == (metric.timestamp - start) // 1000 for metric in history())


def test_a_short_block_is_sampled_once_and_is_not_held_up(run: RunLog) -> None:
    began = time.monotonic()
    with system_metrics(run, 3600, "node 1/a"):
        pass
    assert time.monotonic() - began < 60  # not the hour to the next sample
    assert set(sampled(run)) == {f"system/node_1_a/{name}" for name in NAMES | RATES}


def test_zero_seconds_is_off(run: RunLog) -> None:
    with system_metrics(run, 0):
        assert threads() == []
    assert sampled(run) == {}


def test_a_run_that_was_closed_and_is_resumed_is_sampled(run: RunLog) -> None:
    run.end(failed=True)
    with system_metrics(run, 3600):
        pass
    assert sampled(run)


def test_an_error_of_the_block_comes_through_and_the_thread_ends(run: RunLog) -> None:
    with pytest.raises(ValueError, match="lost"), system_metrics(run, 3600):
        raise ValueError("lost")
    assert threads() == []


class Fixed(Machine):
    """A machine that always tells the same."""

    def __init__(self) -> None:
        pass

    def read(self) -> dict[str, float]:
        return {"cpu_utilization_percentage": 50.0}


def test_a_store_that_fails_for_a_while_gets_its_samples_later(
    run: RunLog, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log_batch, calls = run.client.log_batch, []

    def failing(*words: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) <= 3:
            raise OSError("no route\nto host")
        log_batch(*words, **named)

    monkeypatch.setattr(run.client, "log_batch", failing)
    sampler = Sampler(run, 0.02, machine=Fixed())
    sampler.start()
    deadline = time.monotonic() + 10
    while len(calls) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    sampler.stop()
    history = run.history("system/cpu_utilization_percentage")
    assert len(history) == len(calls) - 3 >= 5
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["system metrics: cannot be recorded for now: no route to host"]


def test_a_store_that_hangs_does_not_hold_up_the_run(
    run: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(run.client, "log_batch", lambda *_, **__: release.wait(30))
    monkeypatch.setattr(system, "PATIENCE", 0.2)
    began = time.monotonic()
    with system_metrics(run, 0.01):
        time.sleep(0.1)
    assert time.monotonic() - began < 20  # the store comes back after 30
    release.set()
    while threads():
        time.sleep(0.01)


def test_network_rates_are_between_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = SimpleNamespace(bytes_recv=5e6, bytes_sent=1e6)
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(psutil, "net_io_counters", lambda: counters)
    monkeypatch.setattr(system, "time", SimpleNamespace(monotonic=lambda: clock.now))
    machine = Machine()
    counters.bytes_recv, clock.now = 25e6, 20.0
    assert machine.read()["network_receive_megabytes_per_second"] == pytest.approx(2)
    counters.bytes_recv, counters.bytes_sent, clock.now = 26e6, 2e6, 22.0
    found = machine.read()
    assert found["network_receive_megabytes_per_second"] == pytest.approx(0.5)
    assert found["network_transmit_megabytes_per_second"] == pytest.approx(0.5)
    assert found["network_receive_megabytes"] == pytest.approx(21)


def test_gpus_are_read_through_nvml_and_what_they_do_not_tell_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NVMLError(Exception):
        pass

    def power(handle: str) -> int:
        if handle == "b":
            raise NVMLError("not supported")
        return 350_000

    nvml = ModuleType("pynvml")
    vars(nvml).update(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda i: "ab"[i],
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=20e9, total=80e9),
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=93),
        nvmlDeviceGetPowerUsage=power,
        nvmlDeviceGetEnforcedPowerLimit=lambda _: 700_000,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = Machine().read()
    of_gpus = {name: value for name, value in found.items() if name.startswith("gpu")}
    assert of_gpus == {
        "gpu_0_memory_usage_megabytes": 20e3,
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_0_utilization_percentage": 93,
        "gpu_0_power_usage_watts": 350.0,
        "gpu_0_power_usage_percentage": 50.0,
        "gpu_1_memory_usage_megabytes": 20e3,
        "gpu_1_memory_usage_percentage": 25.0,
        "gpu_1_utilization_percentage": 93,
    }


def test_every_sample_has_its_place_on_the_page(run: RunLog) -> None:
    with system_metrics(run, 3600, "node1"):
        pass
    curves = read_curves(run)
    assert isinstance(curves, Curves)
    html = curves_page(curves, "Curves")
    for title in ("CPU use", "memory in use", "network", "disk in use"):
        assert f"<h3>{title}</h3>" in html
    assert "Other metrics" not in html
