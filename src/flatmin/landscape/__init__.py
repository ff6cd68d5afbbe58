"""What there is to see of a minimum: the loss on a line or a plane, and what a radius does to it."""

from flatmin.landscape.plots import plot_radius
from flatmin.landscape.surface import Direction, Surface, random_directions, surface

__all__ = ["Direction", "Surface", "plot_radius", "random_directions", "surface"]
