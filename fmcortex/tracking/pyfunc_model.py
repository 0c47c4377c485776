"""A registered model as MLflow runs it: "models from code", so that nothing is pickled.

MLflow copies this file beside the checkpoint and executes it to load the model; see
`fmcortex.tracking.registry`.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel

from fmcortex.device import choose
from fmcortex.errors import ConfigError
from fmcortex.model.network import Network
from fmcortex.training.checkpoint import open_checkpoint

log = logging.getLogger(__name__)

#: The artifact that holds the checkpoint.
ARTIFACT = "checkpoint"
#: What `predict` takes: uint8 [N, T, H, W], float32 [N, T, P] and float32 [N, T, M]; or without N.
INPUTS = ("stimuli", "perspectives", "modulations")


def _arrays(model_input: Any) -> list[np.ndarray]:
    """The arrays of `INPUTS`. Of JSON they come as lists, whose grey levels are not yet uint8."""
    if not hasattr(model_input, "keys"):
        kind = type(model_input).__name__
        raise ConfigError(f"predict: the input is a {kind}, not a dict of {', '.join(INPUTS)}")
    missing = [name for name in INPUTS if name not in model_input]
    if missing:
        raise ConfigError(f"predict: {', '.join(missing)} missing from the input")
    arrays = []
    for name in INPUTS:
        try:
            values = np.asarray(model_input[name])
        except ValueError as error:
            raise ConfigError(f"predict: {name}: not an array: {error}") from error
        if values.dtype.kind not in "biuf":
            raise ConfigError(f"predict: {name}: values are {values.dtype}, not numbers")
        arrays.append(values)
    levels = arrays[0]
    if levels.dtype.kind in "iu" and levels.size and 0 <= levels.min() <= levels.max() <= 255:
        arrays[0] = levels.astype(np.uint8)
    return arrays


# MLflow asks for a type hint that it can validate, which a dict of arrays does not have, and
# overrides filters while it does so: recording is what keeps it quiet.
with warnings.catch_warnings(record=True):

    class FoundationModel(PythonModel):
        """Predicts the responses of a session's neurons to any video."""

        def load_context(self, context: Any) -> None:
            """Open the checkpoint; a session's network is built when it is first asked for."""
            self.checkpoint = open_checkpoint(context.artifacts[ARTIFACT])
            log.warning("fmcortex: model of step %d", self.checkpoint.step)
            self.shared = self.checkpoint.shared()
            self.networks: dict[str, Network] = {}

        def predict(self, context: Any, model_input, params=None):  # type: ignore[no-untyped-def]
            """Predicted responses, as `fmcortex.model.network.Network.predict` gives them.

            Args:
                context: of MLflow; not looked at.
                model_input: arrays, or nested lists of numbers, by the names of `INPUTS`.
                params: `session`, whose neurons to predict; empty for the only or first one.

            Returns:
                float32 [N, T, U], or [T, U], in units of each neuron's training mean.

            Raises:
                ConfigError: an input is missing, or is no array of numbers.
                DataError: the inputs' shapes do not fit each other or the network.
                CheckpointError: the model has no such session.
            """
            arrays = _arrays(model_input)
            session = str((params or {}).get("session") or self.checkpoint.sessions[0])
            if session not in self.networks:
                network = Network(self.shared, self.checkpoint.session(session)).eval()
                self.networks[session] = network.to(choose().device)
            return self.networks[session].predict(*arrays)


mlflow.models.set_model(FoundationModel())
