"""What layers remember of the frames before, when a network is fed a video piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


class Past:
    """One memory for all layers of a network, of one video or one batch of videos.

    Layers keep in it the last frames or the state that the next piece goes on from, and what does
    not change from piece to piece, such as effective weights.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[nn.Module, str], Any] = {}

    def __contains__(self, key: tuple[nn.Module, str]) -> bool:
        return key in self._known

    def __getitem__(self, key: tuple[nn.Module, str]) -> Any:
        return self._known[key]

    def __setitem__(self, key: tuple[nn.Module, str], value: Any) -> None:
        self._known[key] = value


def once(past: Past | None, layer: nn.Module, name: str, make: Callable[[], T]) -> T:
    """What `make` returns; with a past it is made once only."""
    if past is None:
        return make()
    if (layer, name) not in past:
        past[layer, name] = make()
    value: T = past[layer, name]
    return value
