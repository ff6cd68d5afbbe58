r"""The way that training took, and the plane in which most of it lies.

- Li, Xu, Taylor, Studer, Goldstein. Visualizing the Loss Landscape of Neural Nets. NeurIPS 2018, arXiv:1712.09913,
  section 7.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flatmin.checks import nonnegative, whole
from flatmin.curvature.data import unwrapped
from flatmin.curvature.layout import trainable_parameters
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.landscape.states import floating_state, state_like

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flatmin.landscape.directions import Direction

_COLUMNS = 2**20  # coordinates of all snapshots that are widened to float64 at a time


class Trajectory:
    """Snapshots of a model while it is trained, on the CPU, never more than a given number.

    Once there are that many, every second one is dropped, and from then on half as many are taken: they lie evenly
    over training, however long it is. Memory: ``capacity`` copies of parameters and buffers. A call that takes no
    snapshot costs nothing.

    Args:
        model: The model.
        capacity: The most snapshots to hold.

    Attributes:
        steps: The number of the call at which each snapshot was taken, from 0.

    Raises:
        ArgumentError: ``capacity`` is below 2.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> trajectory = Trajectory(model, capacity=4)
        >>> for step in range(11):
        ...     trajectory.record()                    # once before training, then after each step or epoch
        >>> trajectory.steps
        [0, 4, 8]
    """

    def __init__(self, model: nn.Module, *, capacity: int = 100) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentTypeError(f"model is a {type(model).__name__}, but a torch.nn.Module is needed.")
        self._capacity = whole("capacity", capacity, minimum=2, hint="It is the most snapshots to hold.")
        self._model = unwrapped(model)
        self._states = list[dict[str, Tensor]]()
        self._stride, self._calls = 1, 0
        self.steps: list[int] = []

    @torch.no_grad()
    def record(self) -> None:
        """Take a snapshot, if it is time for one."""
        step, self._calls = self._calls, self._calls + 1
        if step % self._stride:
            return
        if len(self._states) == self._capacity:
            self._states, self.steps = self._states[::2], self.steps[::2]
            self._stride *= 2
            if step % self._stride:
                return
        state = floating_state(self._model)
        self._states.append({name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()})
        self.steps.append(step)

    def __len__(self) -> int:
        """Return the number of snapshots."""
        return len(self._states)

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        """Return a snapshot: names to tensors, on the CPU."""
        return self._states[index]

    def __repr__(self) -> str:
        """Show how many there are, and from when to when."""
        span = f", steps {self.steps[0]} to {self.steps[-1]}" if self.steps else ""
        return f"Trajectory({len(self)} snapshots{span})"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrajectoryPath:
    """A trajectory as it is seen in a plane.

    Attributes:
        points: Where the plane is nearest to each snapshot, shape (n, 2), in units of the weights, float64.
        distances: How far each snapshot is from there, out of the plane, shape (n,), float64.
        steps: When each was taken.
    """

    points: Tensor
    distances: Tensor
    steps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrajectoryPlane:
    r"""The plane through the weights of a model that is nearest to trajectories.

    Attributes:
        directions: Two orthogonal directions of length 1, the first along most of the trajectories. They move buffers
            as they moved with the weights.
        explained: Shares of the squared distances from the weights that lie along each, shape (2,), float64.
        paths: The trajectories, as they are seen in the plane. The model's own weights are at (0, 0).
    """

    directions: tuple[Direction, Direction]
    explained: Tensor
    paths: tuple[TrajectoryPath, ...]

    def around(self, points: int = 21, *, margin: float = 0.2) -> tuple[Tensor, Tensor]:
        """Return coordinates that hold all paths: as many ``points`` along each direction, for ``surface``.

        Args:
            points: How many.
            margin: Room on either side, as a share of what the paths take. No side is shorter than 0.4 of the other.

        Returns:
            Two vectors of shape (points,), float64.

        Raises:
            ArgumentError: ``points`` is below 2, or ``margin`` is negative.
        """
        whole("points", points, minimum=2, hint="It is the number of coordinates along each direction.")
        nonnegative("margin", margin, hint="It is the room around the paths, as a share of their extent.")
        everything = torch.cat([torch.zeros(1, 2, dtype=torch.float64), *(path.points for path in self.paths)])
        low, high = everything.min(dim=0).values, everything.max(dim=0).values
        extent = (high - low).clamp(min=0.4 * float((high - low).max()))
        middle, half = (low + high) / 2, extent * (0.5 + margin)
        ends = zip((middle - half).tolist(), (middle + half).tolist(), strict=True)
        first, second = (torch.linspace(start, stop, points, dtype=torch.float64) for start, stop in ends)
        return first, second

    def __repr__(self) -> str:
        """Show what it holds of the trajectories in one line."""
        first, second = (100 * self.explained).tolist()
        count = sum(len(path.steps) for path in self.paths)
        return f"TrajectoryPlane({first:.1f} % + {second:.1f} % of the squared distances, {count} snapshots)"


@torch.no_grad()
def trajectory_plane(model: nn.Module, *trajectories: Trajectory) -> TrajectoryPlane:
    r"""Find the plane through the weights of a model that is nearest to all snapshots of trajectories, by PCA.

    With a row w_i - W for each snapshot in M, it is spanned by the two leading right singular vectors of M, found from
    the small matrix M Mᵀ: :math:`v_k = M^\top u_k / \sigma_k`. This is principal component analysis about the weights
    and not about the mean, as the authors write it, so that the plane that is drawn is the one that fits best. The
    weights are seen exactly; every other snapshot is off the plane by a distance, and it is told.

    Two runs on one plane: the snapshots of both, the weights of one.

    Args:
        model: Where the plane goes through, mostly the end of the first trajectory: its present weights.
        trajectories: Of models of this kind.

    Returns:
        The plane with the paths in it.

    Raises:
        ArgumentError: There is no trajectory, one is of another network, or all snapshots lie on one line through the
            weights.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> trajectory = Trajectory(model)
        >>> for x, y in ((3.0, 0.0), (3.0, 1.0), (0.0, 0.0)):
        ...     _ = model.weight.data.copy_(torch.tensor([[x, y]]))
        ...     trajectory.record()
        >>> plane = trajectory_plane(model, trajectory)
        >>> round(float(plane.explained.sum()), 6), bool(plane.paths[0].distances.max() < 1e-6)
        (1.0, True)
    """
    model = unwrapped(model)
    names = list(trainable_parameters(model))
    here = {name: tensor.detach().cpu() for name, tensor in floating_state(model).items()}
    if not trajectories or not all(isinstance(t, Trajectory) and len(t) for t in trajectories):
        raise ArgumentError(
            "there is no trajectory with snapshots, but one is needed: trajectory = Trajectory(model), and "
            "trajectory.record() after each step or epoch."
        )
    states = [state_like(here, state) for trajectory in trajectories for state in trajectory]
    gram = _gram(here, states, names)
    squares, vectors = torch.linalg.eigh(gram)
    top = squares[-2:].flip(0) if len(squares) > 1 else squares.new_zeros(2)
    if not top[1] > 1e-10 * top[0]:
        raise ArgumentError(
            f"the {len(states)} snapshots lie on one line through the weights, or there are fewer than two besides "
            "these weights, so no plane is theirs. Record more of them."
        )
    coefficients = vectors[:, -2:].flip(1) / top.sqrt()  # (n, 2)
    directions = _combined(here, states, coefficients)
    points = gram @ coefficients  # (w_i - W) · v_k
    off = (gram.diagonal() - points.square().sum(1)).clamp(min=0).sqrt()
    return TrajectoryPlane(
        directions=directions, explained=top / gram.trace(), paths=tuple(_paths(trajectories, points, off))
    )


def _rows(here: Mapping[str, Tensor], states: list[dict[str, Tensor]], name: str) -> Iterator[tuple[slice, Tensor]]:
    """Yield pieces of the rows w_i - W of one tensor, shape (n, piece), float64."""
    flat, middle = [state[name].reshape(-1) for state in states], here[name].reshape(-1)
    width = max(1, _COLUMNS // len(states))
    for start in range(0, len(middle), width):
        piece = slice(start, start + width)
        rows = torch.stack([row[piece].to(torch.float64) for row in flat])
        yield piece, rows - middle[piece].to(torch.float64)


def _gram(here: Mapping[str, Tensor], states: list[dict[str, Tensor]], names: list[str]) -> Tensor:
    """Return M Mᵀ, shape (n, n), over the parameters called ``names``."""
    gram = torch.zeros(len(states), len(states), dtype=torch.float64)
    for name in names:
        for _, rows in _rows(here, states, name):
            gram.addmm_(rows, rows.T)
    return gram


def _combined(
    here: Mapping[str, Tensor], states: list[dict[str, Tensor]], coefficients: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the combinations Mᵀ c of the rows for both columns c, of parameters and buffers alike."""
    found = dict[str, Tensor](), dict[str, Tensor]()
    for name, tensor in here.items():
        flat = torch.empty(2, tensor.numel(), dtype=tensor.dtype)
        for piece, rows in _rows(here, states, name):
            flat[:, piece] = (coefficients.T @ rows).to(tensor.dtype)
        for direction, values in zip(found, flat, strict=True):
            direction[name] = values.view(tensor.shape)
    return found


def _paths(trajectories: tuple[Trajectory, ...], points: Tensor, off: Tensor) -> Iterator[TrajectoryPath]:
    lengths = [len(trajectory) for trajectory in trajectories]
    for trajectory, there, distances in zip(trajectories, points.split(lengths), off.split(lengths), strict=True):
        yield TrajectoryPath(points=there, distances=distances, steps=tuple(trajectory.steps))
