"""What is printed in the paper, beside which ours are put. Figure 6 was read off its curves, as no table has it."""

from __future__ import annotations

FIGURE_6: dict[tuple[str, str], dict[int, float]] = {
    ("training error", "GD"): {20: 0.0482, 100: 0.0041, 1000: 7.6e-6},
    ("training error", "WP-GD"): {20: 0.0639, 100: 0.0126, 1000: 0.0029, 5000: 0.0030},
    ("training error", "NSO"): {20: 0.0440, 100: 0.0034, 1000: 5.6e-4, 5000: 4.1e-4},
    ("validation error", "GD"): {20: 2.30, 5000: 1.76},
    ("validation error", "WP-GD"): {20: 1.90, 100: 0.875, 500: 0.0736, 1000: 0.0078, 2000: 0.0025, 5000: 0.0025},
    ("validation error", "NSO"): {20: 2.08, 100: 1.04, 500: 0.100, 1000: 0.0082, 2000: 8.3e-4, 5000: 5.7e-4},
    ("squared distance", "GD"): {1000: 1.7, 2000: 1.7, 5000: 1.7},
    ("squared distance", "WP-GD"): {1000: 0.0081, 2000: 0.0027, 5000: 0.0026},
    ("squared distance", "NSO"): {1000: 0.0084, 2000: 8.4e-4, 5000: 5.8e-4},
}
"""Quantity and method to step and number: Figure 6, first row, η = 0.0025, σ = 0.08."""

FIGURE_6_SECOND: dict[tuple[str, str], dict[int, float]] = {
    ("training error", "WP-GD"): {20000: 1.3e-3},
    ("training error", "NSO"): {20000: 3.5e-4},
    ("squared distance", "WP-GD"): {20000: 1.2e-3},
    ("squared distance", "NSO"): {20000: 4.7e-4},
}
"""The same for its second row, η = 0.001; of the authors' notebook."""
