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
from flatmin.landscape.surface_plots import common_levels, plot_line, plot_plane, plot_trajectory
from flatmin.landscape.trajectory import Trajectory, TrajectoryPath, TrajectoryPlane, trajectory_plane

__all__ = [
    "Direction",
    "Surface",
    "Trajectory",
    "TrajectoryPath",
    "TrajectoryPlane",
    "common_levels",
    "difference",
    "eigenvector_directions",
    "filter_normalized",
    "plot_density",
    "plot_layers",
    "plot_line",
    "plot_plane",
    "plot_radius",
    "plot_trace",
    "plot_trajectory",
    "random_directions",
    "surface",
    "trajectory_plane",
    "unit",
]
