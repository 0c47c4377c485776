"""Whether a trained model predicts the same on a GPU, and from MLflow's registry, as on the CPU.

    python benchmarks/check_prediction.py RUN DATASET NAME STORE

RUN is a run's folder, DATASET what it was trained on, NAME that of the model registered from it
under the alias `champion` in the MLflow store STORE.
"""

from __future__ import annotations

import sys

import mlflow.pyfunc
import numpy as np
import torch

from fmcortex.data.dataset import open_dataset
from fmcortex.training.checkpoint import open_checkpoint


def main() -> None:
    """Compare on the first validation video of the first session."""
    run, dataset, name, store = sys.argv[1:]
    data = open_dataset(dataset)
    session = sorted(data.sessions)[0]
    video = data.session(session).videos("validation")[0]
    network = open_checkpoint(run).network(session).eval()
    arrays = [np.asarray(a) for a in (video.stimulus, video.perspectives[0], video.modulations[0])]
    expected = network.predict(*arrays)
    if torch.cuda.is_available():
        found = network.to("cuda").predict(*arrays)
        apart = np.abs(found - expected).max() / np.abs(expected).max()
        print(f"  prediction, GPU against CPU: largest relative difference {apart:.1e}")
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    inputs = dict(zip(("stimuli", "perspectives", "modulations"), arrays, strict=True))
    found = model.predict({k: a[None] for k, a in inputs.items()}, params={"session": session})
    apart = np.abs(found[0] - expected).max() / np.abs(expected).max()
    print(f"  the registered model, against the CPU: largest relative difference {apart:.1e}")


if __name__ == "__main__":
    main()
