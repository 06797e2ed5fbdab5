"""`hyperattention measure` and `hyperattention capture`: their options."""

from __future__ import annotations

from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperattention_ref.pages.command import BAD_INPUT, console, interruptible, numbers, refuse
from hyperattention_ref.plan.recipe import RECIPES
from hyperattention_ref.surveys.settings import SurveySettings

_LAYERS = typer.Option(help="Layers, as in 0,1; default all.")
_HEADS = typer.Option(help="Heads of every layer, as in 0,3; default all.")
_N = typer.Option(min=1, help="Tokens from the start of the text; default all.")
_PATH = typer.Argument(help="A .npz or .safetensors file of maps: from `capture`, or query, key and value.")
_DEMO = typer.Option("--demo", help="The six heads that ship with the package, instead of a file.")
_RECIPES = typer.Option(help="Recipes to compare, separated by commas.")
_BUDGET = typer.Option(min=1, help="Keys for each query; a recipe’s pilot comes on top.")
_ROWS = typer.Option(min=1, help="Exact rows for masses and errors; default 1024, or all if fewer.")
_CONFIDENCE = typer.Option(help="Confidence of every bound by itself, between 0 and 1.")
_TOLERANCE = typer.Option(help="Relative error up to which a recipe may stand in for a head.")
_MIN_SEQ_LEN = typer.Option(min=1, help="Causal ranges up to this length are exact.")
_BACKEND = typer.Option(help="Backend; see `hyperattention backends`. Default: chosen by the inputs.")
_JOBS = typer.Option(help="Heads measured at a time; -1 for one on each core.")
_SEED = typer.Option(min=0, help="Seed of everything random.")
_FORCE = typer.Option("--force", help="Replace a file that is there already.")
_OUT = typer.Option(help="Folder of the results; a survey that was interrupted resumes there.")


def measure(
    path: Annotated[Path | None, _PATH] = None,
    demo: Annotated[bool, _DEMO] = False,
    layers: Annotated[str | None, _LAYERS] = None,
    heads: Annotated[str | None, _HEADS] = None,
    n: Annotated[int | None, _N] = None,
    recipes: Annotated[str, _RECIPES] = ",".join(RECIPES),
    budget: Annotated[int, _BUDGET] = SurveySettings.budget,
    rows: Annotated[int | None, _ROWS] = None,
    confidence: Annotated[float, _CONFIDENCE] = SurveySettings.confidence,
    tolerance: Annotated[float, _TOLERANCE] = SurveySettings.tolerance,
    min_seq_len: Annotated[int, _MIN_SEQ_LEN] = SurveySettings.min_seq_len,
    backend: Annotated[str | None, _BACKEND] = None,
    jobs: Annotated[int, _JOBS] = 1,
    seed: Annotated[int, _SEED] = SurveySettings.seed,
    out: Annotated[Path, _OUT] = Path("survey"),
) -> None:
    """Measure real attention maps: hardness, what each recipe finds, its error, and a verdict for each head."""
    from hyperattention_ref.surveys.console import run

    if demo == (path is not None):
        refuse("give either a file of maps or --demo")
    sample = resources.files("hyperattention_ref") / "data" / "minilm_heads.npz"
    maps = resources.as_file(sample) if demo else nullcontext(path)
    try:
        settings = SurveySettings(
            n=n,
            recipes=tuple(name.strip() for name in recipes.split(",")),
            budget=budget,
            rows=rows,
            confidence=confidence,
            tolerance=tolerance,
            min_seq_len=min_seq_len,
            seed=seed,
            backend=backend,
        )
        with interruptible(f"finished heads are in {out}; the same command goes on there"), maps as file:
            run(file, out, settings, console(190), **_chosen(layers, heads), n_jobs=jobs)
    except BAD_INPUT as error:
        refuse(error)


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
