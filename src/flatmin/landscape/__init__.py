"""What there is to see of a minimum: the loss on a line or a plane, what a radius does to it, and its curvature."""

from flatmin.landscape.curvature_plots import plot_density, plot_layers, plot_trace
from flatmin.landscape.directions import (
    Direction,
    eigenvector_directions,
    filter_normalized,
    random_directions,
    unit,
)
from flatmin.landscape.plots import plot_radius
from flatmin.landscape.states import difference
from flatmin.landscape.surface import Surface, surface
from flatmin.landscape.trajectory import Path, Trajectory, TrajectoryPlane, trajectory_plane

__all__ = [
    "Direction",
    "Path",
    "Surface",
    "Trajectory",
    "TrajectoryPlane",
    "difference",
    "eigenvector_directions",
    "filter_normalized",
    "plot_density",
    "plot_layers",
    "plot_radius",
    "plot_trace",
    "random_directions",
    "surface",
    "trajectory_plane",
    "unit",
]
