"""The authors' network (public repository cajal/fnn, commit 614d33e) at the sizes of a config."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fmcortex.model.sizes import ModelConfig


def import_fnn(checkout: Path) -> None:
    """Make `fnn` importable.

    Raises:
        SystemExit: `checkout` holds no fnn.
    """
    if not (checkout / "fnn" / "model" / "networks.py").is_file():
        sys.exit(f"--fnn {checkout}: no checkout of cajal/fnn; expected fnn/model/networks.py")
    sys.path.insert(0, str(checkout))


def build(config: ModelConfig, units: int) -> Any:
    """Their network, so that its state dict fits ours; call `import_fnn` first."""
    from fnn.model import (
        bounds,
        cores,
        features,
        modulations,
        monitors,
        networks,
        perspectives,
        pixels,
        positions,
        readouts,
        reductions,
        retinas,
    )
    from fnn.model import feedforwards as ff
    from fnn.model import recurrents as rec
    from fnn.model import units as outputs

    c = config
    common = {
        "in_channels": c.recurrent_in,
        "out_channels": c.recurrent_out,
        "hidden_channels": c.recurrent_hidden,
        "groups": c.recurrent_groups,
        "spatial": c.recurrent_spatial,
    }
    if c.recurrent == "cvtlstm":
        recurrent = rec.CvtLstm(common_channels=c.recurrent_common, **common)
    else:
        recurrent = rec.ConvLstm(**common)
    feedforward = ff.InputDense(
        c.input_spatial,
        c.input_stride,
        c.block_channels,
        c.block_groups,
        c.block_layers,
        c.block_temporals,
        c.block_spatials,
        c.block_pools,
        c.feedforward_out,
        nonlinear="gelu",
    )
    network = networks.Visual(
        core=cores.FeedforwardRecurrent(feedforward, recurrent),
        perspective=perspectives.MlpMonitorRetina(
            c.eye_features,
            c.eye_layers,
            "gelu",
            monitors.Plane(),
            pixels.StaticPower(1.7),
            retinas.Angular(c.retina_degrees),
            pixels.SigmoidPower(),
            c.retina_height,
            c.retina_width,
        ),
        modulation=modulations.MlpLstm(
            c.modulation_features, c.modulation_layers, "gelu", c.modulation_lstm
        ),
        readout=readouts.PositionFeature(
            positions.Gaussian(c.position_std), bounds.Tanh(), features.Vanilla()
        ),
        reduce=reductions.Mean(),
        unit=outputs.Poisson(),
    )
    network._init(
        stimuli=1,
        perspectives=c.perspectives,
        modulations=c.modulations,
        units=units,
        streams=c.streams,
    )
    return network
