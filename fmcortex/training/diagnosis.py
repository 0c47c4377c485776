"""Finding out whose loss is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fmcortex.data.loader import Batch
from fmcortex.errors import DataError

#: Neurons named in a message.
NAMED = 8


@dataclass(frozen=True)
class Trouble:
    """A micro-batch whose loss is not finite.

    Attributes:
        step: of the run.
        session: of the micro-batch.
        trials: that were drawn.
        neurons: of the session.
        predicted: neurons, from 0, whose output is not finite or too large for the loss.
        recorded: neurons whose recorded response is infinite.
    """

    step: int
    session: str
    trials: tuple[int, ...]
    neurons: int
    predicted: tuple[int, ...]
    recorded: tuple[int, ...]


def diagnose(batch: Batch, raw: Tensor, step: int, burnin: int) -> Trouble:
    """What is not finite in a micro-batch.

    Args:
        batch: that was trained.
        raw: [N, T, U] raw outputs.
        step: of the run.
        burnin: frames that do not count.
    """
    output = raw[:, burnin:].float()
    broken = ~torch.isfinite(output.exp().sum(dim=(0, 1)) + output.sum(dim=(0, 1)))
    infinite = torch.isinf(batch.responses[:, burnin:]).any(dim=1).any(dim=0)
    return Trouble(
        step=step,
        session=batch.draw.session,
        trials=tuple(sorted({clip.trial for clip in batch.draw.clips})),
        neurons=raw.shape[-1],
        predicted=tuple(broken.nonzero().flatten().tolist()),
        recorded=tuple(infinite.nonzero().flatten().tolist()),
    )


def explain(troubles: Sequence[Trouble], step: int, skipped: int) -> str:
    """One line that says what went wrong in the last of `skipped` steps, and what to do."""
    said = [_line(trouble) for trouble in troubles[:3]]
    if len(troubles) > 3:
        others = sorted({trouble.session for trouble in troubles[3:]})
        said.append(f"and so in {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}")
    where = "; ".join(said) or "all losses are finite, but a gradient is not"
    return (
        f"the loss is not finite at step {step}, and {skipped} step{'s' * (skipped > 1)} had to be "
        f"skipped (training.max_skipped): {where}"
    )


def check_trained(skipped: int, steps: int) -> None:
    """Refuse a run as finished whose steps were left out for the most part.

    Args:
        skipped: steps that were left out.
        steps: of the run.

    Raises:
        DataError: more than half of them were.
    """
    if 2 * skipped > steps:
        raise DataError(
            f"{skipped} of {steps} steps were left out because a loss or a gradient was not "
            "finite, so the run has not been trained; lower training.lr, or check the data with "
            "`fmcortex data verify`"
        )


def left_out(skipped: int) -> str:
    """How many steps were left out, in words."""
    return f"{skipped or 'no'} step{'s' * (skipped != 1)} left out as not finite"


def _line(trouble: Trouble) -> str:
    if trouble.recorded:
        what = f"recorded responses of {_neurons(trouble.recorded, trouble.neurons)} are infinite"
        todo = "repair or leave out these trials"
    elif trouble.predicted:
        what = f"outputs of {_neurons(trouble.predicted, trouble.neurons)} are not finite"
        todo = "lower training.lr, or check these trials with `fmcortex data verify`"
    else:
        what, todo = "the sum over its neurons is too large", "lower training.lr"
    return f"session {trouble.session}, trials {list(trouble.trials)}: {what}; {todo}"


def _neurons(which: Sequence[int], neurons: int) -> str:
    if len(which) == neurons:
        return f"all {neurons} neurons"
    named = ", ".join(str(neuron) for neuron in which[:NAMED])
    more = f" and {len(which) - NAMED} more" if len(which) > NAMED else ""
    return f"neuron{'s' * (len(which) > 1)} {named}{more} (of {neurons})"
