"""What a rank asks of the other ranks in a step, besides the shared part: and a rank alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Peers(Protocol):
    """The other ranks. All ranks must make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """Of this process."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a small tensor over all ranks."""

    def sum_session(self, session: str, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum of a session's gradients over the ranks that hold it.

        To be called by all that hold it, with the same names.
        """

    def counts(self, session: str) -> bool:
        """Whether this rank, of those that hold the session, is the one that speaks for it."""

    def shared_by_ranks(self, session: str) -> bool:
        """Whether several ranks hold the session."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks."""


class Alone:
    """No other ranks."""

    rank = 0

    def sum(self, values: Tensor) -> Tensor:
        return values

    def sum_session(self, session: str, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(gradients)

    def counts(self, session: str) -> bool:
        return True

    def shared_by_ranks(self, session: str) -> bool:
        return False

    def gather(self, value: Any) -> list[Any]:
        return [value]
