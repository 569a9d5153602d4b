"""Settings of the documentation's build."""

from importlib.metadata import metadata

_metadata = metadata("zlayer-consensus")

project = "zlayer-consensus"
author = "The zlayer-consensus developers"
project_copyright = author
release = version = _metadata["Version"]

# Nothing here needs the network, so no intersphinx.
extensions = ["sphinx.ext.autodoc"]
autodoc_member_order = "bysource"
# The signature line of a class with fifteen fields is unreadable with types; they stand with each parameter.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"

exclude_patterns = ["_build"]
default_role = "code"

html_theme = "furo"
html_title = f"zlayer-consensus {release}"
html_copy_source = False
html_show_sphinx = False
