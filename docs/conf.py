"""Sphinx configuration: Markdown pages, and the API page from the docstrings."""

import re
from importlib.metadata import version as installed_version

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "hyperattention-ref"
author = "the hyperattention-ref authors"
version = release = installed_version("hyperattention-ref")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
default_role = "literal"  # `name` in a docstring is code
html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["formulas.css"]
html_title = f"{project} {version}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings state types and shapes


def format_sections(app, what, name, obj, options, lines):
    """Turn the numpydoc sections of a docstring into reStructuredText.

    Entries are `name : what it is`, in words, with further lines indented: `(n, d) array` is no type to link to.
    Bars outside of code are absolute values.
    """
    formatted, section = [], None
    for line, following in zip(lines, [*lines, ""][1:], strict=True):
        line = re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or r"\|", line)
        if re.fullmatch("-{3,}", line):
            continue
        if re.fullmatch("-{3,}", following):
            section = line
            formatted += [f".. rubric:: {section}", ""]
        elif section in ("Parameters", "Attributes", "Returns", "Raises") and (entry := re.match(r"(\S.*?) : ", line)):
            names = entry[1].replace("*", r"\*")
            formatted += ["", f"* **{names}**: {line[entry.end() :]}"]
        else:
            formatted.append(line[2:] if section and line.startswith("    ") else line)
    lines[:] = formatted


def inline_formula(writer, node):
    """A formula as MathML, which browsers set by themselves: pages need no script and no network."""
    writer.body.append(convert(node.astext()))
    raise SkipNode


def displayed_formula(writer, node):
    r"""A formula on a line of its own, with its number, `\tag{1}`, at the right."""
    formula, _, number = node.astext().partition(r"\tag")
    label = f"<span>({number.strip(' {}')})</span>" if number else ""
    writer.body.append(f'<div class="formula">{convert(formula, display="block")}{label}</div>')
    raise SkipNode


def setup(app):
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
    app.connect("autodoc-process-docstring", format_sections)
