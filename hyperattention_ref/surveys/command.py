"""`hyperattention measure` and `hyperattention capture`: their options."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hyperattention_ref.pages.command import BAD_INPUT, command_line, console, interruptible, numbers, refuse
from hyperattention_ref.pages.wording import printable
from hyperattention_ref.plan.recipe import RECIPES
from hyperattention_ref.surveys.settings import SurveySettings

_LAYERS = typer.Option(help="Layers, as in 0,1; default all.")
_HEADS = typer.Option(help="Heads of every layer, as in 0,3; default all.")
_N = typer.Option(min=1, help="Tokens from the start of the text; default all.")
_MAPS = typer.Argument(
    metavar="FILE | MODEL", help="A .npz or .safetensors file of maps; or a transformers model, its name or folder."
)
_TEXT = typer.Argument(metavar="TEXT", help="For a model: a text file in UTF-8, on which its maps are captured first.")
_KEEP = typer.Option(help="For a model: the file of its maps, kept, and used if it is there; default a temporary one.")
_DEMO = typer.Option("--demo", help="The six heads that ship with the package, instead of a file.")
_RECIPES = typer.Option(show_default="all", help="Recipes to compare, separated by commas.")
_BUDGET = typer.Option(min=1, help="Keys for each query; a recipe’s pilot comes on top.")
_ROWS = typer.Option(
    metavar="NUMBER | auto",
    help="Exact rows for errors, and for masses if it is a number; auto: until every error is decided. "
    "Default: all for errors if that takes less than about a minute, else 1024; 1024 for masses.",
)
_EXACT = typer.Option("--exact", help="All rows for errors, so that they are exact.")
_AGAINST = typer.Option(help="Folder of another survey: show what changed since, head by head.")
_CONFIDENCE = typer.Option(help="Confidence of every bound by itself, between 0 and 1.")
_OP_NORM = typer.Option("--op-norm/--no-op-norm", help="Compute ‖P‖ and the stable rank of every head.")
_TOLERANCE = typer.Option(help="Relative error up to which a recipe may stand in for a head.")
_MIN_SEQ_LEN = typer.Option(min=1, help="Causal ranges up to this length are exact.")
_BACKEND = typer.Option(help="Backend; see `hyperattention backends`. Default: chosen by the inputs.")
_JOBS = typer.Option(help="Heads measured at a time; -1 for one on each core.")
_SEED = typer.Option(min=0, help="Seed of everything random.")
_FORCE = typer.Option("--force", help="Replace a file that is there already.")
_OUT = typer.Option(help="Folder of the results; a survey that was interrupted resumes there.")


def measure(
    context: typer.Context,
    maps: Annotated[str | None, _MAPS] = None,
    text: Annotated[Path | None, _TEXT] = None,
    demo: Annotated[bool, _DEMO] = False,
    keep: Annotated[Path | None, _KEEP] = None,
    layers: Annotated[str | None, _LAYERS] = None,
    heads: Annotated[str | None, _HEADS] = None,
    n: Annotated[int | None, _N] = None,
    recipes: Annotated[str, _RECIPES] = ",".join(RECIPES),
    budget: Annotated[int, _BUDGET] = SurveySettings.budget,
    rows: Annotated[str | None, _ROWS] = None,
    exact: Annotated[bool, _EXACT] = False,
    confidence: Annotated[float, _CONFIDENCE] = SurveySettings.confidence,
    op_norm: Annotated[bool, _OP_NORM] = SurveySettings.op_norm,
    tolerance: Annotated[float, _TOLERANCE] = SurveySettings.tolerance,
    min_seq_len: Annotated[int, _MIN_SEQ_LEN] = SurveySettings.min_seq_len,
    backend: Annotated[str | None, _BACKEND] = None,
    jobs: Annotated[int, _JOBS] = 1,
    seed: Annotated[int, _SEED] = SurveySettings.seed,
    out: Annotated[Path, _OUT] = Path("survey"),
    against: Annotated[Path | None, _AGAINST] = None,
) -> None:
    """Measure real attention maps, of a file or of a model: hardness, what recipes find, their errors, verdicts."""
    from hyperattention_ref.surveys.console import measure_file, show
    from hyperattention_ref.surveys.report import make_report
    from hyperattention_ref.surveys.survey import load_survey

    _check_source(maps, text, demo, keep)
    try:
        settings = SurveySettings(
            n=n,
            recipes=tuple(name.strip() for name in recipes.split(",")),
            budget=budget,
            rows=_rows(rows, exact),
            confidence=confidence,
            op_norm=op_norm,
            tolerance=tolerance,
            min_seq_len=min_seq_len,
            seed=seed,
            backend=backend,
        )
        chosen = _chosen(layers, heads)
        other = (against.name, load_survey(against)) if against else None
        with interruptible(f"finished heads are in {out}; the same command goes on there"):
            if maps and text:
                results = _measure_model(maps, text, keep, out, settings, chosen, jobs)
            else:
                with _file(maps) as file:
                    results = measure_file(file, out, settings, **chosen, n_jobs=jobs)
            report = make_report(out, settings, results, command_line(context), other)
            show(report, out, console(190))
    except BAD_INPUT as error:
        refuse(error)


def _measure_model(model: str, text: Path, keep: Path | None, out: Path, settings: SurveySettings, chosen, jobs: int):
    """Capture and measure, unless a run of the same did all of it."""
    from hyperattention_ref.surveys import captured
    from hyperattention_ref.surveys.console import measure_file

    asked = captured.asked_for(model, text, settings, **chosen)
    if (results := captured.finished(out, asked)) is None:
        if keep is None or not keep.exists():
            print(f"capturing the maps of {printable(model)}", file=sys.stderr)
        with captured.captured(model, text, keep, n=settings.n, **chosen) as file:
            results = measure_file(file, out, settings, **chosen, n_jobs=jobs)
        captured.note_finished(out, asked, results)
    return results


def _check_source(maps: str | None, text: Path | None, demo: bool, keep: Path | None) -> None:
    """Refuse what names no maps, or names them twice."""
    if demo == (maps is not None):
        refuse("give either a file of maps or --demo, or a model and a text")
    if maps is not None and text is None and not Path(maps).is_file():
        reason = os.strerror(errno.EISDIR if Path(maps).is_dir() else errno.ENOENT)
        refuse(f"{maps}: {reason}; for a model give a text, too: hyperattention measure MODEL TEXT")
    if maps is not None and text is not None and Path(maps).is_file():
        refuse(f"{maps} is a file, and a text belongs to a model; give the file alone, or a model's name or folder")
    if keep is not None and text is None:
        refuse("--keep keeps the maps of a model; give a model and a text, too: hyperattention measure MODEL TEXT")


def _file(maps: str | None) -> AbstractContextManager[Path]:
    """The file of maps that was named, or of the sample heads."""
    sample = resources.files("hyperattention_ref") / "data" / "minilm_heads.npz"
    return resources.as_file(sample) if maps is None else nullcontext(Path(maps))


def _rows(rows: str | None, exact: bool) -> int | Literal["auto", "all"] | None:
    """The setting `rows` from the options --rows and --exact."""
    if exact and rows is not None:
        raise ValueError("give --exact, which takes all rows, or --rows, but not both")
    if exact:
        return "all"
    if rows is None:
        return None
    if rows == "auto":
        return "auto"
    if not rows.isdecimal():
        raise ValueError(f"--rows is {rows!r}; it must be a number of rows, or auto; for all rows say --exact")
    return int(rows)


def capture(
    model: Annotated[str, typer.Argument(help="A transformers model: its name or folder.")],
    text: Annotated[Path, typer.Argument(help="A text file in UTF-8.")],
    out: Annotated[Path, typer.Option(help="The .npz or .safetensors file to write.")],
    n: Annotated[int | None, _N] = None,
    layers: Annotated[str | None, _LAYERS] = None,
    heads: Annotated[str | None, _HEADS] = None,
    force: Annotated[bool, _FORCE] = False,
) -> None:
    """Run a model once on a text and keep the queries, keys and values of its heads (extra "models")."""
    from hyperattention_ref.maps.map_file import MapFile
    from hyperattention_ref.maps.model_capture import capture_text

    try:
        with interruptible(f"{out} was not written; the same command starts again"):
            file = capture_text(model, text, out, n=n, overwrite=force, **_chosen(layers, heads))
        with MapFile(file) as maps:
            tokens = maps.tokens(maps.layers[0])
            print(f"{out}: {len(maps)} heads of {len(maps.layers)} layers, {tokens} tokens")
    except BAD_INPUT as error:
        refuse(error)


def _chosen(layers: str | None, heads: str | None) -> dict[str, Any]:
    return {"layers": numbers("--layers", layers), "heads": numbers("--heads", heads)}


def add_to(cli: typer.Typer) -> None:
    """Add the commands."""
    cli.command()(measure)
    cli.command()(capture)
