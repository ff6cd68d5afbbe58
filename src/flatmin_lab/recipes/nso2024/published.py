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

DATA_SETS = ("CIFAR-10", "CIFAR-100", "Aircraft", "Caltech-256", "Indoor", "Retina")
"""The columns of Tables 3 and 6."""

TABLES_3_AND_6: dict[str, dict[str, tuple[float, ...]]] = {
    "test_accuracy": {
        "sgd": (96.1, 82.8, 60.5, 80.0, 76.7, 62.2),
        "ls": (96.9, 83.8, 59.0, 76.6, 76.5, 64.2),
        "sam": (97.0, 84.0, 62.3, 77.0, 77.2, 65.0),
        "usam": (96.9, 83.7, 61.9, 76.9, 76.7, 64.7),
        "asam": (97.1, 84.2, 62.4, 77.3, 77.2, 65.2),
        "rsam": (96.8, 84.0, 60.9, 76.4, 76.8, 65.9),
        "bsam": (96.9, 83.9, 61.0, 76.8, 76.4, 65.4),
        "nso": (97.6, 84.9, 63.2, 78.1, 78.2, 67.0),
    },
    "trace": {
        "sgd": (4128, 13188, 5471, 3674, 3629, 28607),
        "ls": (2690, 10669, 5699, 3482, 3650, 17681),
        "sam": (2429, 9227, 4499, 3285, 3159, 15444),
        "usam": (2352, 7382, 4298, 3174, 3072, 12068),
        "asam": (2445, 9960, 4475, 3339, 3014, 14155),
        "rsam": (2379, 9762, 4665, 3224, 3425, 16950),
        "bsam": (2768, 9787, 4750, 3498, 3162, 16238),
        "nso": (1728, 5244, 3678, 2958, 2737, 10970),
    },
    "authors_lambda": {
        "sgd": (1442, 4639, 1152, 1064, 1087, 8276),
        "ls": (1311, 3051, 1144, 893, 764, 4296),
        "sam": (1326, 2625, 890, 948, 887, 4033),
        "usam": (1245, 2299, 592, 782, 755, 3893),
        "asam": (1383, 2638, 615, 795, 697, 3925),
        "rsam": (1356, 2901, 895, 779, 988, 4537),
        "bsam": (1375, 2788, 972, 843, 939, 4123),
        "nso": (1070, 2059, 579, 643, 639, 3681),
    },
}
"""Quantity and method to the means over data sets: accuracies in percent, "λ₁" as the authors' code has it."""

TABLE_2_DATA = ("Aircraft", "Indoor", "Retina")
"""The columns of Table 2."""

TABLE_2: dict[str, dict[str, tuple[float, float, float]]] = {
    "train_accuracy": {
        "sgd": (100.0, 100.0, 100.0),
        "wpsgd": (98.4, 99.0, 100.0),
        "wpsgd-laplace": (98.3, 98.9, 100.0),
        "wpsgd-uniform": (98.6, 98.6, 100.0),
        "wpsgd-binomial": (19.6, 18.2, 58.1),
        "nso": (95.8, 95.7, 100.0),
        "nso-laplace": (96.5, 96.1, 100.0),
        "nso-uniform": (96.4, 96.4, 100.0),
        "nso-binomial": (20.1, 22.8, 59.2),
    },
    "test_accuracy": {
        "sgd": (59.8, 76.0, 61.7),
        "wpsgd": (60.4, 76.3, 62.3),
        "wpsgd-laplace": (60.3, 76.4, 62.0),
        "wpsgd-uniform": (60.3, 76.6, 62.3),
        "wpsgd-binomial": (11.3, 10.7, 57.1),
        "nso": (62.3, 77.4, 66.6),
        "nso-laplace": (61.9, 77.1, 65.9),
        "nso-uniform": (61.9, 76.8, 65.7),
        "nso-binomial": (14.3, 17.9, 57.8),
    },
}
"""Quantity and method to the means over data sets, in percent."""

TABLE_4_RHOS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
"""Inferred: the heads of the columns of Table 4 are not in the text that is to be had."""

TABLE_4: dict[str, dict[str, tuple[float, ...]]] = {
    "trace": {"sam": (4920, 4347, 4016, 3918, 3159, 3028), "usam": (4352, 3990, 3723, 3427, 3072, 3048)},
    "validation_accuracy": {"sam": (73.6, 74.4, 74.8, 75.2, 76.6, 73.8), "usam": (74.1, 74.1, 74.7, 74.6, 76.3, 73.1)},
}
"""Quantity and method to the means over ρ, on Indoor."""

COMBINED = {"trace": -13.6, "test_loss": -16.3}
"""Figure 5: change in percent where NSO is added to augmentation and to the distance penalty."""

IN_TEXT = {"two points": 3.6, "two pairs": 1.2, "label smoothing": -10.6, "plain": -17.7}
"""Ablations: points of accuracy of -U and of k = 2; change of the trace in percent against label smoothing, and without
momentum and weight decay."""

TABLE_5: dict[str, dict[str, tuple[float, float, float]]] = {
    "cc3m": {"sgd": (220, 41, 36.1), "sam": (144, 30, 36.9), "nso": (119, 22, 37.5)},
    "csqa": {"sgd": (372, 19, 27.7), "sam": (288, 15, 32.7), "nso": (208, 13, 39.2)},
    "strategyqa": {"sgd": (294, 44, 68.9), "sam": (249, 42, 71.1), "nso": (193, 33, 75.2)},
}
"""Data set and method to trace, "λ₁" and metric: R@10 of Conceptual Captions, accuracy of answers in percent."""

FIGURE_3: dict[str, dict[str, tuple[float, float]]] = {
    "resnet34": {"gap": (1.07, 0.78), "test_loss": (0.55, 0.515), "trace": (4.8e3, 2.1e3)},
    "bert": {"gap": (0.74, 0.57), "test_loss": (0.655, 0.60), "trace": (6.1e3, 1.2e3)},
}
"""Network and quantity at the end of training, of SGD and of NSO; read off an earlier version, the authors' poster."""
