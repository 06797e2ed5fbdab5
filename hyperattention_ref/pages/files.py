"""Files of a report: pages from templates, plots as PNG, every file whole or not at all."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from hyperattention_ref.pages.wording import number, power_of_ten


def write_whole(path: Path, content: bytes) -> None:
    """Write by way of a temporary file that is renamed."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_plots(plots: Iterable, folder: Path) -> list[tuple]:
    """Write every Plot as a PNG file; return pairs of a Plot and its PNG in base64."""
    written = []
    for plot in plots:
        buffer = io.BytesIO()
        plot.figure.savefig(buffer, format="png", dpi=160)
        write_whole(folder / f"{plot.name}.png", buffer.getvalue())
        written.append((plot, base64.b64encode(buffer.getvalue()).decode()))
    return written


def render(template: str, **names) -> str:
    """The page that a template, such as `verify/page.html.j2`, makes of `names`; `style` is the sheet of all pages."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    pages = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"maths": maths, "number": number, "power_of_ten": power_of_ten}
    package = resources.files("hyperattention_ref")
    style = Markup((package / "pages/page.css").read_text(encoding="utf-8"))
    return pages.from_string((package / template).read_text(encoding="utf-8")).render(style=style, **names)


def maths(text: str):
    """Subscripts, superscripts and minus signs, from the way formulas are written in the checks."""
    from markupsafe import Markup, escape

    def superscript(match: re.Match) -> str:
        return f"<sup>{match[1].replace('-', '−')}</sup>"

    text = str(escape(text)).replace(" - ", " − ").replace("(-", "(−")
    text = re.sub(r"\^\(((?:[^()]|\([^()]*\))*)\)", superscript, text)
    text = re.sub(r"\^([-−\w.]+(?:\[[^\]]*\])?)", superscript, text)
    return Markup(re.sub(r"_([A-Za-z0-9]+|∞)", r"<sub>\1</sub>", text))
