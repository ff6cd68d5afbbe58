"""How the pages are made: Sphinx over Markdown, the API from docstrings, a gallery from scripts."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))
os.environ.setdefault("MPLBACKEND", "agg")

import flatmin  # noqa: E402

project = "flatmin"
author = "The flatmin authors"
project_copyright = "The flatmin authors, Apache-2.0"
version = release = flatmin.__version__

extensions = [
    "api",
    "children",
    "docstrings",
    "links",
    "mathml",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
root_doc = "index"
exclude_patterns = ["_*", "gallery"]
highlight_language = "none"  # a block that names no language is plain text
html_math_renderer = "mathml"
children = {  # those that are there
    "methods/README": ["methods/nso", "methods/wpsgd", "methods/attach", "methods/sam", "methods/*sam", "methods/*"],
    "curvature-benchmark": ["performance"],
    "reproducing": ["theory-nso", "theory-escape", "results/reproductions/*/README"],
}

# Markdown, as the code host reads it too.
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4

# The API.
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_mock_imports = ["accelerate", "lightning", "transformers"]
autosummary_generate = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
toc_object_entries_show_parents = "hide"

# Scripts that run, with their figures.
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"\.py$",
    "run_stale_examples": True,
    "within_subsection_order": "FileNameSortKey",
    "matplotlib_animations": False,
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "capture_repr": (),
    "notebook_extensions": set(),
}

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"flatmin {version}"
html_static_path = ["_static"]
html_css_files = ["flatmin.css"]
html_copy_source = False
html_show_sphinx = False
