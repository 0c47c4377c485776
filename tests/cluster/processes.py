"""Finding the processes of this test."""

from __future__ import annotations

import os

import psutil


def workers_of_this_test() -> list[psutil.Process]:
    """The Ray Train workers that descend from this process."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        try:
            if "RayTrainWorker" in " ".join(process.info["cmdline"] or []) and os.getpid() in [
                parent.pid for parent in process.parents()
            ]:
                found.append(process)
        except psutil.Error:
            continue
    return found
