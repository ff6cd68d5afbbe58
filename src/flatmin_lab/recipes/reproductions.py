"""The reproductions by name. Importing this file loads neither torch nor matplotlib, so that help appears at once."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from flatmin_lab.recipes.outcome import Outcome


@dataclass(frozen=True)
class Reproduction:
    """One entry.

    Attributes:
        summary: What is reproduced, in a few words.
        paper: Where it is in the paper.
        place: What runs it, as ``"module:function"``: given size, seed and ``Watch`` it returns an ``Outcome``.
        keeps_runs: Whether it is made of runs on tasks: it is given a ``folder`` too, to keep finished runs in, and the
            ``tasks`` it is to keep to, if not all; its module has ``SIZES``, the ``Scale`` of each task by size.
        needs: The function of its module that says what a size lacks, where the tasks do not say so.
    """

    summary: str
    paper: str
    place: str
    keeps_runs: bool = False
    needs: str = ""

    def load(self) -> Callable[..., Outcome]:
        """Import what runs it."""
        return getattr(self._module(), self.place.partition(":")[2])

    def require(self, size: str) -> None:
        """Say what a size lacks here, before anything starts.

        Raises:
            ArgumentError: There is no such size of it.
            DataError: What it needs under the data root is not there.
            LabError: Another thing is missing that it needs.
        """
        if self.needs:
            getattr(self._module(), self.needs)(size)
        elif self.keeps_runs:
            from flatmin_lab.recipes.studies import require

            require(self._module().SIZES, size)

    def _module(self) -> ModuleType:
        return importlib.import_module(f"flatmin_lab.recipes.{self.place.partition(':')[0]}")


_NSO, _ESCAPE = "arXiv:2306.08553", "arXiv:2305.15659"

REPRODUCTIONS: dict[str, Reproduction] = {
    "nso.table2": Reproduction(
        "laws of noise, at one point and at two",
        f"{_NSO}, Table 2",
        "nso2024.table2:table2",
        keeps_runs=True,
    ),
    "nso.fig2": Reproduction(
        "the perturbation gap against the trace of the Hessian",
        f"{_NSO}, equation (4) and Figure 2",
        "nso2024.fig2:fig2",
    ),
    "nso.table3": Reproduction(
        "accuracy, trace and largest eigenvalue of eight methods",
        f"{_NSO}, Tables 3 and 6",
        "nso2024.table3:table3",
        keeps_runs=True,
    ),
    "nso.table4": Reproduction(
        "SAM and USAM over ρ, NSO over σ",
        f"{_NSO}, Table 4",
        "nso2024.table4:table4",
        keeps_runs=True,
    ),
    "nso.fig4": Reproduction(
        "NSO and WP-SGD over learning rates and lengths of training",
        f"{_NSO}, Figure 4",
        "nso2024.fig4:fig4",
        keeps_runs=True,
    ),
    "nso.fig5": Reproduction(
        "NSO and SAM over batch sizes, NSO with other regularizers",
        f"{_NSO}, Figure 5",
        "nso2024.fig5:fig5",
        keeps_runs=True,
    ),
    "nso.ablations": Reproduction(
        "what each part of NSO does",
        f"{_NSO}, the ablations in the text of section 3",
        "nso2024.ablations:ablations",
        keeps_runs=True,
    ),
    "nso.pairing": Reproduction(
        "which share of NSO's effect is kept at the price of SGD",
        "beyond the papers: +U and −U on the two halves of a batch",
        "nso2024.pairing:pairing",
        keeps_runs=True,
    ),
    "nso.table5": Reproduction(
        "pairs of images and texts, and rationales, by three methods",
        f"{_NSO}, Table 5",
        "nso2024.table5:table5",
        keeps_runs=True,
    ),
    "nso.fig3": Reproduction(
        "test loss, trace and gap along training",
        f"{_NSO}, Figure 3",
        "nso2024.fig3:fig3",
        keeps_runs=True,
    ),
    "nso.fig6": Reproduction(
        "over-parameterized matrix sensing by GD, WP-GD and NSO",
        f"{_NSO}, section 5, Proposition 5.1 and Figure 6",
        "nso2024.fig6:fig6",
    ),
    "nso.theory": Reproduction(
        "gradient norms between the upper and the lower bound",
        f"{_NSO}, Proposition 4.2, Theorem 4.3, Theorem B.5 and Lemma B.6",
        "nso2024.theory:theory",
    ),
    "escape.example1": Reproduction(
        "perturbed gradient descent on (x₁x₂ − 1)²",
        f"{_ESCAPE}, Example 1, Algorithms 1 and 2",
        "escape2023.example1:example1",
    ),
    "escape.rates": Reproduction(
        "steps to a flat minimum by accuracy and dimension",
        f"{_ESCAPE}, Theorems 1 and 2, Table 1",
        "escape2023.rates:rates",
    ),
    "escape.fig3": Reproduction(
        "from a start that generalizes badly by RS and SA, and by SA with other batch sizes",
        f"{_ESCAPE}, Figure 3",
        "escape2023.fig3:fig3",
        keeps_runs=True,
        needs="require",
    ),
}
"""Every table and figure that can be made again."""
