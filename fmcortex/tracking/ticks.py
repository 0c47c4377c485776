"""Ticks of axes and numbers as people write them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

#: Distances of ticks on an axis of time, seconds.
TIMES = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 43200)
DAY = 86400


def short(value: float | None, digits: int = 3) -> str:
    """A number in few characters: 0.0123, 12.3k, 4.5M, 2e−7; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–" if value is None or math.isnan(value) else ("−∞" if value < 0 else "∞")
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-3:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        text = f"{_bare(mantissa)}e{int(power)}"
    else:
        unit = next((u for u in ("T", "G", "M", "k") if size >= 0.99995 * 10 ** _POWER[u]), "")
        # Whole numbers below ten thousand are easier to read as they are.
        if unit == "k" and size < 1e4:
            unit = ""
        scaled = value / 10 ** _POWER[unit]
        whole = len(str(int(abs(scaled)))) if abs(scaled) >= 1 else 0
        zeros = 0 if scaled == 0 or whole else -math.floor(math.log10(abs(scaled))) - 1
        text = _bare(f"{scaled:.{max(digits - whole + zeros, 0)}f}") + unit
    return text.replace("-", "−")


_POWER = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12}


def _bare(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(seconds: float) -> str:
    """A time as 40 s, 5 min, 1 h 30 min, 2 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    parts = [(whole // DAY, "d"), (whole % DAY // 3600, "h"), (whole % 3600 // 60, "min")]
    if whole < 600 and whole % 60:
        parts.append((whole % 60, "s"))
    return " ".join(f"{n} {unit}" for n, unit in parts if n)


def linear(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, at most about `most`."""
    step = _round_step((high - low) / most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= least * (1 - 1e-9))


def whole(low: float, high: float, most: int = 5) -> list[float]:
    """As `linear`, whole numbers only: steps, counts."""
    step = max(_round_step((high - low) / most), 1.0)
    step = math.ceil(step)  # 2.5 is no step of whole numbers
    return [i * float(step) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def times(low: float, high: float, most: int = 5) -> list[float]:
    """Ticks of an axis of seconds, on whole minutes, hours or days."""
    least = (high - low) / most
    step = next((s for s in TIMES if s >= least), math.ceil(least / DAY) * DAY)
    return [i * float(step) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def logarithmic(low: float, high: float, most: int = 5) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten, with 2 and 5 between where there is room."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    fewer = -(-(last - first) // most)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        powers = range(first, last + 1, fewer if factors == (1,) else 1)
        found = [m * 10.0**p for p in powers for m in factors]
        found = [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(found) <= most + 1:
            break
    return found if len(found) >= 2 else linear(low, high, most)


def labels(ticks: Sequence[float]) -> list[str]:
    """The ticks of a linear axis as text, all with the same number of decimals."""
    if len(ticks) < 2 or max(map(abs, ticks)) >= 1e4 or max(map(abs, ticks)) < 1e-3:
        return [short(tick) for tick in ticks]
    step = min(b - a for a, b in itertools.pairwise(ticks))
    digits = next((d for d in range(8) if abs(step * 10**d - round(step * 10**d)) < 1e-6), 8)
    return [f"{tick:z.{digits}f}".replace("-", "−") for tick in ticks]
