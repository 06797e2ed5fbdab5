"""Files of a report: pages from templates, plots as PNG, every file whole or not at all."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.foundation.whole_file import write_whole
from hyperattention_ref.pages.wording import number, power_of_ten

if TYPE_CHECKING:
    from hyperattention_ref.pages.plot_style import Plot


def write_text(path: Path, text: str) -> None:
    r"""Text in UTF-8. A byte of a file name that is none appears as \udce9, which JSON reads back."""
    write_whole(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, content: dict) -> None:
    """Strict JSON in UTF-8."""
    write_text(path, json.dumps(content, ensure_ascii=False, allow_nan=False))


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """Rows of the same columns, under a line with their names."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, rows[0] if rows else ())
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, lines.getvalue())


def write_report(folder: Path, data: str, report: Result, plots: Iterable[Plot], template: str, **names) -> None:
    """Write the report as JSON, its plots as PNG files, and report.html, which needs no other file.

    Parameters
    ----------
    folder : an existing directory; files of the same names are replaced.
    data : name of the JSON file.
    report, plots : what to write.
    template, names : of the page; see `render`.
    """
    write_json(folder / data, report.to_dict())
    write_text(folder / "report.html", render(template, report=report, plots=write_plots(plots, folder), **names))


def write_plots(plots: Iterable[Plot], folder: Path) -> list[tuple[Plot, str]]:
    """Write every Plot as a PNG file; return pairs of a Plot and its PNG in base64.

    `plots` should draw each figure when it is asked for it, as generators do: in the reports' own style.
    """
    from hyperattention_ref.pages.plot_style import own_style

    pairs = []
    with own_style():
        for plot in plots:
            buffer = io.BytesIO()
            plot.figure.savefig(buffer, format="png", dpi=160)
            write_whole(folder / f"{plot.name}.png", buffer.getvalue())
            pairs.append((plot, base64.b64encode(buffer.getvalue()).decode()))
    return pairs


def render(template: str, **names) -> str:
    """The page of a template, such as `verify/page.html.j2`; all extend `pages/page.html.j2`.

    Parameters
    ----------
    template : path in the package.
    names : what the template may use; `report` and `plots`, the pairs of `write_plots`, are needed by all.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("hyperattention_ref", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"maths": maths, "number": number, "power_of_ten": power_of_ten, "with_anchors": with_anchors}
    return pages.get_template(template).render(**names).lstrip()


def with_anchors(page: str):
    """Give each h2 of a page an id that links can name.

    Returns
    -------
    The headings by id, and the page; both are HTML that is safe if `page` was.
    """
    from markupsafe import Markup

    headings: dict[str, Markup] = {}

    def anchored(match: re.Match) -> str:
        anchor = "-".join(re.findall(r"\w+", Markup(match[1]).striptags().lower()))
        headings[anchor] = Markup(match[1])
        return f'<h2 id="{anchor}">{match[1]}</h2>'

    page = Markup(re.sub(r"<h2>(.*?)</h2>", anchored, page, flags=re.DOTALL))
    return headings, page


def maths(text: str):
    """Subscripts, superscripts and minus signs, from the way formulas are written in the checks."""
    from markupsafe import Markup, escape

    def superscript(match: re.Match) -> str:
        return f"<sup>{match[1].replace('-', '−')}</sup>"

    text = str(escape(text)).replace(" - ", " − ").replace("(-", "(−")
    text = re.sub(r"\^\(((?:[^()]|\([^()]*\))*)\)", superscript, text)
    text = re.sub(r"\^([-−\w.]+(?:\[[^\]]*\])?)", superscript, text)
    return Markup(re.sub(r"_([A-Za-z0-9]+|∞)", r"<sub>\1</sub>", text))
