"""The neurons of a mouse: where they lie, what they see and what drives them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Area:
    """A visual area's map and its neurons' typical tuning.

    Higher areas differ from V1 as Andermann et al. (Neuron 72, 1025-1039, 2011) and Marshel et al.
    (Neuron 72, 1040-1054, 2011) found: AL and RL prefer low spatial and high temporal frequencies
    and are more direction selective. The numbers are round and scaled to what 64 pixels resolve.
    """

    name: str
    share: float  # of the neurons
    centre: tuple[float, float]  # of its map on the cortex, micrometres
    magnification: float  # micrometres per degree
    mirror: int  # 1, or -1 where the map is the mirror image of V1's
    spatial: float  # median preferred spatial frequency, cycles per degree
    temporal: float  # median preferred temporal frequency, Hz
    direction: float  # mean direction weight
    size: float  # envelope relative to V1's at the same spatial frequency


@dataclass(frozen=True)
class Layer:
    """A cortical layer: its depth and how its neurons differ."""

    name: str
    share: float
    depth: tuple[float, float]  # micrometres below the surface
    complex_share: float
    rate: float  # relative to layer 2/3
    running: float  # gain by running, relative
    width: float  # spread of orientation tuning: short envelopes tune broadly


AREAS = (
    Area("V1", 0.50, (0.0, 0.0), 20.0, 1, 0.050, 2.0, 0.35, 1.0),
    Area("LM", 0.20, (-1300.0, 200.0), 10.0, -1, 0.042, 2.6, 0.40, 1.1),
    Area("AL", 0.15, (-1100.0, 950.0), 8.0, 1, 0.030, 4.2, 0.60, 1.2),
    Area("RL", 0.15, (-500.0, 1250.0), 8.0, -1, 0.032, 3.4, 0.55, 1.25),
)
LAYERS = (
    Layer("L2/3", 0.50, (150.0, 300.0), 0.45, 1.0, 1.0, 1.0),
    Layer("L4", 0.25, (320.0, 430.0), 0.20, 1.3, 0.7, 0.9),
    Layer("L5", 0.25, (450.0, 600.0), 0.65, 1.6, 1.2, 0.85),
)

#: Receptive fields are sampled within these distances from the monitor's centre, of its half size.
CENTRAL = 0.6
#: Scatter of receptive fields about the retinotopic map, degrees.
SCATTER = 2.5


@dataclass(frozen=True)
class Population:
    """The ground truth of U neurons; every field is an array with U rows.

    Angles are degrees from +x (right) towards +y (down). `direction` is that of preferred motion;
    `orientation`, in 0-180, that of the preferred bars, across it.
    """

    unit_id: np.ndarray
    area: np.ndarray
    layer: np.ndarray
    coordinates: np.ndarray  # micrometres [U, 3]: x, y on the cortex, depth
    centre: np.ndarray  # degrees on the retina [U, 2], on the monitor at gaze zero
    direction: np.ndarray
    orientation: np.ndarray
    spatial_frequency: np.ndarray  # of the carrier, cycles per degree
    temporal_frequency: np.ndarray  # of the carrier, Hz
    sigma_across: np.ndarray  # of the envelope, along the direction of motion, degrees
    sigma_along: np.ndarray  # of the envelope, along the bars, degrees
    phase: np.ndarray  # of the carrier, radians; matters to simple cells
    is_complex: np.ndarray
    direction_weight: np.ndarray  # 0: both directions alike, 1: null direction silent
    latency: np.ndarray  # from the stimulus to the first response, seconds
    rate: np.ndarray  # mean response to natural movies at rest, a.u.
    baseline: np.ndarray  # response to a grey screen, a.u.
    gain_running: np.ndarray  # relative gain per 15 cm/s
    gain_arousal: np.ndarray  # relative gain per standard deviation of arousal
    gain_shared: np.ndarray  # loading on the shared slow fluctuation, at noise 1
    plane: np.ndarray  # imaging plane

    def __len__(self) -> int:
        return len(self.unit_id)

    def columns(self) -> dict[str, np.ndarray]:
        """All fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def sample_population(
    neurons: int,
    half_degrees: tuple[float, float],
    planes: int,
    rng: np.random.Generator,
) -> Population:
    """Draw the neurons of a mouse.

    Args:
        neurons: U.
        half_degrees: half the monitor's width and height, degrees.
        planes: imaging planes; neurons of similar depth share one.
        rng: its generator.
    """
    of_area = rng.choice(len(AREAS), neurons, p=[area.share for area in AREAS])
    of_layer = rng.choice(len(LAYERS), neurons, p=[layer.share for layer in LAYERS])

    def by_area(name: str) -> np.ndarray:
        return np.array([getattr(area, name) for area in AREAS])[of_area]

    def by_layer(name: str) -> np.ndarray:
        return np.array([getattr(layer, name) for layer in LAYERS])[of_layer]

    # The map: a place in the visual field has one on each area's sheet; fields scatter about it.
    mapped = rng.uniform(-1, 1, (neurons, 2)) * CENTRAL * np.array(half_degrees)
    centre = mapped + rng.normal(0, SCATTER, (neurons, 2))
    sheet = mapped * by_area("magnification")[:, None]
    sheet[:, 0] *= by_area("mirror")
    depth = by_layer("depth")
    depth = rng.uniform(depth[:, 0], depth[:, 1])
    coordinates = np.column_stack([by_area("centre") + sheet, depth])

    direction = rng.uniform(0, 360, neurons)
    spatial = np.clip(by_area("spatial") * np.exp2(rng.normal(0, 0.4, neurons)), 0.02, 0.09)
    temporal = np.clip(by_area("temporal") * np.exp2(rng.normal(0, 0.5, neurons)), 0.8, 7.0)
    cycles = rng.uniform(0.32, 0.45, neurons) * by_area("size") * by_layer("width")
    across = np.clip(cycles / spatial, 4.0, 14.0)
    along = np.clip(across * rng.uniform(0.8, 1.5, neurons), 4.0, 16.0)
    selective = by_area("direction")
    rate = 0.55 * by_layer("rate") * rng.lognormal(-0.1, 0.45, neurons)
    order = np.argsort(np.argsort(depth))
    return Population(
        unit_id=np.sort(rng.choice(10 * neurons, neurons, replace=False)).astype(np.int64) + 1,
        area=np.array([area.name for area in AREAS])[of_area],
        layer=np.array([layer.name for layer in LAYERS])[of_layer],
        coordinates=coordinates,
        centre=centre,
        direction=direction,
        orientation=(direction + 90) % 180,
        spatial_frequency=spatial,
        temporal_frequency=temporal,
        sigma_across=across,
        sigma_along=along,
        phase=rng.uniform(0, 2 * np.pi, neurons),
        is_complex=rng.random(neurons) < by_layer("complex_share"),
        direction_weight=rng.beta(4 * selective, 4 * (1 - selective)),
        latency=rng.uniform(0.06, 0.1, neurons),
        rate=rate,
        baseline=rate * rng.uniform(0.02, 0.15, neurons),
        gain_running=0.9 * by_layer("running") * rng.lognormal(-0.2, 0.5, neurons),
        gain_arousal=rng.normal(0.15, 0.1, neurons),
        gain_shared=rng.normal(0.15, 0.08, neurons),
        plane=(order * planes // neurons).astype(np.int64),
    )
