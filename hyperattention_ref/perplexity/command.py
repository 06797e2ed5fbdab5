"""`hyperattention perplexity`: its options, and what the terminal shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperattention_ref.pages.command import BAD_INPUT, command_line, console, interruptible, numbers, refuse
from hyperattention_ref.perplexity.settings import TEXTS, PerplexitySettings
from hyperattention_ref.plan.recipe import RECIPES

_MODEL = typer.Argument(help="A causal language model of transformers, its name or folder.")
_TEXT = typer.Argument(metavar="TEXT", help="A text file in UTF-8.")
_N = typer.Option(help="Tokens from the start of the text.")
_LAYERS = typer.Option(help="How many of the last layers are replaced, as in 0,10,20; default a third and all.")
_RECIPES = typer.Option(show_default="all", help="Recipes to compare, separated by commas.")
_BUDGET = typer.Option(help="Keys for each query; a recipe’s pilot comes on top.")
_MIN_SEQ_LEN = typer.Option(help="Causal ranges up to this length are exact.")
_LAST = typer.Option(metavar="TOKENS", help="Score only so many tokens at the end; default all.")
_RETRIEVAL = typer.Option(
    metavar="|".join(TEXTS),
    help="The text as it is; or a stretch of it repeated at a prime distance; or repeated in shuffled pieces. Of the "
    "latter two the repetition is scored.",
)
_BEYOND = typer.Option("--beyond-context", help="Allow more tokens than the model was trained for.")
_SEED = typer.Option(help="Seed of everything random.")
_OUT = typer.Option(help="Folder of the results; a comparison that was interrupted resumes there.")


def perplexity(
    context: typer.Context,
    model: Annotated[str, _MODEL],
    text: Annotated[Path, _TEXT],
    n: Annotated[int, _N] = PerplexitySettings.n,
    layers: Annotated[str | None, _LAYERS] = None,
    recipes: Annotated[str, _RECIPES] = ",".join(RECIPES),
    budget: Annotated[int, _BUDGET] = PerplexitySettings.budget,
    min_seq_len: Annotated[int, _MIN_SEQ_LEN] = PerplexitySettings.min_seq_len,
    last: Annotated[int | None, _LAST] = None,
    retrieval: Annotated[str, _RETRIEVAL] = PerplexitySettings.retrieval,
    beyond_context: Annotated[bool, _BEYOND] = False,
    seed: Annotated[int, _SEED] = PerplexitySettings.seed,
    out: Annotated[Path, _OUT] = Path("perplexity"),
) -> None:
    """Replace the attention of a model's last layers: what each recipe costs in loss and saves in time."""
    try:
        counts = numbers("--layers", layers)
        settings = PerplexitySettings(
            n=n,
            layers=None if counts is None else tuple(counts),
            recipes=tuple(name.strip() for name in recipes.split(",")),
            budget=budget,
            min_seq_len=min_seq_len,
            last=last,
            retrieval=retrieval,
            beyond_context=beyond_context,
            seed=seed,
        )
        with interruptible(f"finished prefills are in {out}; the same command goes on there"):
            run(model, text, out, settings, command_line(context))
    except BAD_INPUT as error:
        refuse(error)


def run(model: str, text: Path, out: Path, settings: PerplexitySettings, command: str) -> None:
    """Compare, write the report, show."""
    from hyperattention_ref.pages.progress import progress_bar
    from hyperattention_ref.perplexity.page import write_report
    from hyperattention_ref.perplexity.report import grid
    from hyperattention_ref.perplexity.run import compare

    terminal = console(150)
    with progress_bar() as step:
        report = compare(model, text, out, settings, command, step)
        step("drawing", len(report.rows), len(report.rows))
        write_report(report, out)
    terminal.print(grid(report).table(), "")
    terminal.print(*report.findings, "", sep="\n")
    terminal.print(report.summary, style="bold")
    terminal.print("The report is", out / "report.html", soft_wrap=True)


def add_to(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command()(perplexity)
