"""How far the newest checkpoints of runs are apart.

    python benchmarks/compare_runs.py RUN OTHER...

Prints the worst difference of a parameter, relative to its largest value, of each other run from
the first one, for the shared part and for the sessions.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


def parameters(run: str) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint but the optimizers', as file:name."""
    folder = max(
        Path(run, "checkpoints").glob("step*"),
        key=lambda path: int(path.name.removeprefix("step-")),
    )
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        if "optimizer" not in path.name:
            known = load_file(path)
            found |= {f"{path.relative_to(folder)}:{name}": x for name, x in known.items()}
    return found


def main() -> None:
    """Compare."""
    first, *others = sys.argv[1:]
    base = parameters(first)
    for other in others:
        try:
            theirs = parameters(other)
        except ValueError:
            print(f"  {other}: no checkpoint")
            continue
        assert set(theirs) == set(base), f"{other}: other parameters than {first}"
        worst = max(base, key=lambda name: apart(base[name], theirs[name]))
        equal = sum(bool((base[name] == theirs[name]).all()) for name in base)
        print(
            f"  {other} against {first}: largest relative difference "
            f"{apart(base[worst], theirs[worst]):.1e} in {worst}; {equal} of {len(base)} the same "
            "bit for bit"
        )


def apart(one: Tensor, two: Tensor) -> float:
    """Largest difference over largest magnitude."""
    one, two = one.double(), two.double()
    return float((one - two).abs().max() / one.abs().max().clip(min=1e-12))


if __name__ == "__main__":
    main()
