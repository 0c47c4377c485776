"""Lanes: which sessions each micro-batch of a step may come from, and in what turn.

A *lane* is one micro-batch a step. It is written as its *turns*: the names of the sessions that it
trains one after another, from the start again when they are through. `["a"]` trains session a in
every step, `["a", "b", "a"]` trains a twice as often as b.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from fmcortex.errors import ConfigError

#: How far a session's part of a lane's turns may be from its share, as a fraction of the share.
TOLERANCE = 0.01
#: The most turns of a lane, for each of its sessions.
MOST_TURNS = 100


def session_weights(rule: str | float, minutes: Mapping[str, float]) -> dict[str, float]:
    """How often each session is drawn, in any unit.

    Args:
        rule: `training.session_weights`: uniform, minutes, or a temperature t for
            minutes ** (1 / t).
        minutes: of training data of each session.
    """
    if rule == "uniform":
        return dict.fromkeys(minutes, 1.0)
    power = 1.0 if isinstance(rule, str) else 1 / rule
    longest = max(minutes.values(), default=0.0) or 1.0  # powers of a fraction do not overflow
    return {name: (value / longest) ** power for name, value in minutes.items()}


def place_sessions(
    weights: Mapping[str, float], costs: Mapping[str, float], lanes: int
) -> list[list[str]]:
    """Place sessions on lanes so that each is drawn in proportion to its weight.

    The share of a session is the micro-batches a step that its weight asks for, `lanes` in all. A
    session whose share is 1 or more holds whole lanes alone, at least one. The others are packed
    into the remaining lanes, each on one of them, and take turns there by their shares.

    Args:
        weights: of each session, in any unit, above 0.
        costs: of a micro-batch of each session, in any unit; they decide between equals.
        lanes: how many.

    Returns:
        The turns of each lane.

    Raises:
        ConfigError: there are no sessions, or a weight is not above 0.
    """
    if not weights:
        raise ConfigError("data.sessions: there are no sessions to train on")
    for name, weight in weights.items():
        if not weight > 0:
            raise ConfigError(
                f"training.session_weights: the weight of session {name} is {weight:g}; use "
                "uniform or another temperature, or leave the session out of data.sessions"
            )
    by_cost = sorted(weights, key=lambda name: (-costs[name], name))
    total = sum(weights[name] for name in by_cost)
    shares = {name: lanes * weights[name] / total for name in by_cost}
    # Sums of equal weights round: a share of 0.9999999999 is one of 1.
    whole = {name for name in by_cost if shares[name] >= 1 - 1e-9}
    shared = _shared_lanes(shares, whole)
    while len(whole) > lanes - shared:  # where those next to nothing need a lane after all
        whole.remove(min(whole, key=lambda name: (shares[name], costs[name], name)))
        shared = _shared_lanes(shares, whole)
    alone_on = [name for name in by_cost if name in whole]
    held = apportion([shares[name] for name in alone_on], lanes - shared)
    alone = [[name] for name, count in zip(alone_on, held, strict=True) for _ in range(count)]
    return alone + [
        turns({name: shares[name] for name in names})
        for names in _pack({n: shares[n] for n in by_cost if n not in whole}, costs, shared)
    ]


def _shared_lanes(shares: Mapping[str, float], whole: Collection[str]) -> int:
    """Lanes for the sessions that hold none alone."""
    parts = [share for name, share in shares.items() if name not in whole]
    return max(1, round(sum(parts))) if parts else 0


def _pack(shares: Mapping[str, float], costs: Mapping[str, float], lanes: int) -> list[list[str]]:
    """Sessions on lanes of nearly equal shares, then costs: largest first, to the lightest lane."""
    placed: list[list[str]] = [[] for _ in range(lanes)]
    loads = [(False, 0.0, 0.0, lane) for lane in range(lanes)]  # an empty lane comes first
    for name in sorted(shares, key=lambda name: (-round(shares[name], 9), -costs[name], name)):
        _, share, cost, lane = min(loads)
        placed[lane].append(name)
        loads[lane] = (True, round(share + shares[name], 9), cost + costs[name], lane)
    return placed


def apportion(shares: Sequence[float] | np.ndarray, seats: int) -> np.ndarray:
    """`seats` in whole numbers by the largest remainder, at least one each.

    Args:
        shares: in any unit; of equal remainders the first comes first.
        seats: how many; at least as many as there are shares.
    """
    shares = np.asarray(shares, float)
    held = np.ones(len(shares), int)
    more = np.ones(len(shares), bool)  # those that can have more than the one that all have
    while more.any():
        left = seats - int((~more).sum())
        wanted = np.round(shares * (left / shares[more].sum()), 9)
        if not (more & (wanted < 1)).any():
            held[more] = wanted[more].astype(int)
            first = np.argsort(np.where(more, held - wanted, np.inf), kind="stable")
            held[first[: seats - int(held.sum())]] += 1
            break
        more &= wanted >= 1
    return held


def turns(shares: Mapping[str, float]) -> list[str]:
    """The turns of sessions that share a lane, each evenly spread (smooth round robin).

    The shortest list that gives every session its share within `TOLERANCE`; where none of at most
    `MOST_TURNS` turns a session does, the nearest.
    """
    names = list(shares)
    wanted = np.array([shares[name] for name in names]) / sum(shares.values())
    best: tuple[float, np.ndarray] | None = None
    for period in range(len(names), MOST_TURNS * len(names) + 1):
        counts = apportion(wanted, period)
        error = float(np.abs(counts / (wanted * period) - 1).max())
        if best is None or error < best[0]:
            best = error, counts
        if error <= TOLERANCE:
            break
    assert best is not None  # the first period has one turn for each
    return _spread(names, best[1])


def _spread(names: Sequence[str], counts: np.ndarray) -> list[str]:
    """Each name `counts` times, as evenly spaced as whole numbers allow."""
    period, credit, found = int(counts.sum()), np.zeros(len(names), int), []
    for _ in range(period):
        credit += counts
        first = int(credit.argmax())
        credit[first] -= period
        found.append(names[first])
    return found
