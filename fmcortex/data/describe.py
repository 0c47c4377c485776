"""What is in a prepared dataset, and whether it is whole: `fmcortex data info` and `verify`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fmcortex.data.dataset import PreparedSession, open_dataset
from fmcortex.errors import FmcortexError


def describe(url: str) -> dict[str, Any]:
    """Summarise the prepared dataset at `url` from its manifests.

    Returns:
        `url`, totals over sessions (`sessions`, `neurons`, `train_trials`, `train_minutes`,
        `bytes`) and `session_details`: one entry a session, sorted by name, with the frame size
        in pixels, the frame rate in Hz, the repeated videos by tier and domain, and the excluded
        trials by reason. JSON-ready.

    Raises:
        DataError: not a prepared dataset, or a manifest is missing or damaged.
        StorageError: it cannot be read.
    """
    dataset = open_dataset(url)
    sizes = {entry.session: entry.bytes for entry in dataset.manifest.sessions}
    details = [_describe_session(dataset.session(name), sizes[name]) for name in dataset.sessions]
    totals = {
        key: sum(detail[key] for detail in details)
        for key in ("neurons", "train_trials", "train_minutes", "bytes")
    }
    return {"url": url, "sessions": len(details), **totals, "session_details": details}


def _describe_session(session: PreparedSession, size: int) -> dict[str, Any]:
    manifest = session.manifest
    videos: dict[str, dict[str, dict[str, int]]] = {}
    for video in manifest.videos:
        domains = videos.setdefault(video.tier, {})
        counts = domains.setdefault(video.domain, {"videos": 0, "repeats": 0})
        counts["videos"] += 1
        counts["repeats"] += video.repeats
    return {
        "session": manifest.session,
        "animal": manifest.animal,
        "layout": manifest.layout,
        "neurons": manifest.neurons,
        "frame_rate": manifest.frame_rate,
        "height": manifest.height,
        "width": manifest.width,
        "perspectives": manifest.perspectives,
        "modulations": manifest.modulations,
        "train_trials": len(manifest.trials),
        "train_minutes": manifest.train_minutes,
        "bytes": size,
        "videos": videos,
        "excluded": dict(Counter(item.reason for item in manifest.excluded)),
    }


def verify(url: str) -> list[str]:
    """Check every byte of the prepared dataset at `url`.

    Returns:
        One line for each problem, naming the file, shard or array; empty if all is whole.

    Raises:
        DataError: not a prepared dataset.
        StorageError: its manifest cannot be read.
    """
    dataset = open_dataset(url)
    problems = []
    for name in dataset.sessions:
        try:
            problems += dataset.session(name).verify()
        except FmcortexError as error:
            problems.append(str(error))
    return problems
