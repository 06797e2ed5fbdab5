"""The command line: `hyperattention verify`, `measure`, `capture`, `bench`, `backends`, `hyperattention --version`.

The console script exists in every installation; its libraries come with the extra `report`, and nothing of them is
imported before it is known that all are there.
"""

# No `from __future__ import annotations`: Typer reads the annotations of functions that are defined inside `_app`.

import os
import shlex
import sys
import time
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

NEEDED = ("typer", "rich", "matplotlib", "jinja2", "joblib", "threadpoolctl", "pydantic")
FULL, QUICK = (1024, 20), (256, 5)
"""n and trials where they are not given."""
BAD_INPUT = (ValueError, TypeError, OSError, ImportError, MemoryError)
"""What the library raises for input that it refuses, or that does not fit."""


def main() -> None:
    """Entry point of the console script."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"hyperattention: the command line needs {', '.join(missing)}, which this installation lacks; "
            'install the extra "report": pip install "hyperattention-ref[report]"',
            file=sys.stderr,
        )
        raise SystemExit(2)
    # The matrices are small: more BLAS threads gain little, cost much on a busy machine, and change the last bits.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    app()(prog_name="hyperattention")


def app():
    """The Typer application."""
    import typer
    from rich.console import Console
    from rich.markup import escape

    import hyperattention_ref as hr

    about = "The numerical reference for HyperAttention."
    cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=about)

    def print_version(wanted: bool) -> None:
        if wanted:
            print(f"hyperattention-ref {hr.__version__}")
            raise typer.Exit

    show_version = typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")

    @cli.callback()
    def options(version: Annotated[bool, show_version] = False) -> None:
        pass

    @cli.command()
    def backends() -> None:
        """List the known backends and say of each whether it can run here."""
        console = Console(highlight=False, soft_wrap=True)
        for name, reason in hr.backend_status().items():
            status = "[green]can run here[/]" if reason is None else f"[yellow]cannot run here[/]: {escape(reason)}"
            console.print(f"[bold]{escape(name)}[/]  {status}")

    def known(families: list[str] | None) -> list[str] | None:
        unknown = sorted(set(families or ()) - set(hr.synthetic.FAMILIES))
        if unknown:
            raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(hr.synthetic.FAMILIES)}")
        return families

    def at_least(low: int):
        def check(x: int | None) -> int | None:
            if x is not None and x < low:
                raise typer.BadParameter(f"{x} is too small; it must be at least {low}")
            return x

        return check

    def in_range(epsilon: float) -> float:
        if not 0 < epsilon <= 1:
            raise typer.BadParameter(f"{epsilon:g} is out of range; it must be 0 < epsilon <= 1")
        return epsilon

    def made(out: Path) -> Path:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise typer.BadParameter(f"{out} cannot be made a folder ({error.strerror}); name another") from None
        return out

    is_quick = typer.Option("--quick", help="n = 256 and 5 trials, where these are not given: seconds, not minutes.")
    tokens = typer.Option(callback=at_least(64), help="Tokens of the larger problems, from 64; default 1024.")
    inputs = typer.Option(callback=known, help="Family of inputs; may be repeated. Default: each statement's own.")
    aim = typer.Option(callback=in_range, help="The error aimed at, 0 < epsilon <= 1; time grows as 1/epsilon^2.")
    repeats = typer.Option(callback=at_least(1), help="Trials of the larger problems; default 20.")
    start = typer.Option(callback=at_least(0), help="Seed of everything random, from 0.")
    folder = typer.Option(callback=made, help="Folder of the report, its data and its plots.")

    @cli.command()
    def verify(
        quick: Annotated[bool, is_quick] = False,
        n: Annotated[int | None, tokens] = None,
        family: Annotated[list[str] | None, inputs] = None,
        epsilon: Annotated[float, aim] = 0.5,
        trials: Annotated[int | None, repeats] = None,
        seed: Annotated[int, start] = 0,
        out: Annotated[Path, folder] = Path("report"),
    ) -> None:
        """Check the paper, statement by statement, and write a report.

        Exit code 1 when something that should hold fails, or a counterexample does not.
        """
        from hyperattention_ref.proofs_checks import Settings

        usual_n, usual_trials = QUICK if quick else FULL
        families = tuple(family) if family else None
        if not run(Settings(n or usual_n, families, epsilon, trials or usual_trials, seed), out):
            raise typer.Exit(1)

    add_surveys(cli)
    add_bench(cli)
    return cli


def add_surveys(cli) -> None:
    """The commands that are about real attention maps."""
    import typer

    from hyperattention_ref.plan.recipe import RECIPES
    from hyperattention_ref.surveys.head import SurveySettings

    usual = SurveySettings()
    some_layers = typer.Option(help="Layers, as in 0,1; default all.")
    some_heads = typer.Option(help="Heads of every layer, as in 0,3; default all.")
    maps = typer.Argument(help="A .npz or .safetensors file of maps: from `capture`, or query, key and value.")
    is_demo = typer.Option("--demo", help="The six heads that ship with the package, instead of a file.")
    prefix = typer.Option(min=1, help="Tokens from the start of the text; default all.")
    ways = typer.Option(help="Recipes to compare, separated by commas.")
    budget_keys = typer.Option(min=1, help="Keys for each query; a recipe’s pilot comes on top.")
    exact_rows = typer.Option(min=1, help="Exact rows for masses and errors; default 1024, or all if fewer.")
    sure = typer.Option(help="Confidence of every bound by itself, between 0 and 1.")
    allowed = typer.Option(help="Relative error up to which a recipe may stand in for a head.")
    leaf = typer.Option(min=1, help="Causal ranges up to this length are exact.")
    engine = typer.Option(help="Backend; see `hyperattention backends`. Default: chosen by the inputs.")
    parallel = typer.Option(help="Heads measured at a time; -1 for one on each core.")
    start = typer.Option(min=0, help="Seed of everything random.")
    folder = typer.Option(help="Folder of the results; a survey that was interrupted resumes there.")

    @cli.command()
    def measure(
        path: Annotated[Path | None, maps] = None,
        demo: Annotated[bool, is_demo] = False,
        layers: Annotated[str | None, some_layers] = None,
        heads: Annotated[str | None, some_heads] = None,
        n: Annotated[int | None, prefix] = None,
        recipes: Annotated[str, ways] = ",".join(RECIPES),
        budget: Annotated[int, budget_keys] = usual.budget,
        rows: Annotated[int | None, exact_rows] = None,
        confidence: Annotated[float, sure] = usual.confidence,
        tolerance: Annotated[float, allowed] = usual.tolerance,
        min_seq_len: Annotated[int, leaf] = usual.min_seq_len,
        backend: Annotated[str | None, engine] = None,
        jobs: Annotated[int, parallel] = 1,
        seed: Annotated[int, start] = usual.seed,
        out: Annotated[Path, folder] = Path("survey"),
    ) -> None:
        """Measure real attention maps: hardness, what each recipe finds, its error, and a verdict for each head."""
        from importlib.resources import as_file, files

        from rich.console import Console

        from hyperattention_ref.surveys.console import run

        if demo == (path is not None):
            _refuse("give either a file of maps or --demo")
        console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 190)
        source = as_file(files("hyperattention_ref") / "data" / "minilm_heads.npz") if demo else nullcontext(path)
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
            with source as file:
                run(file, out, settings, console, layers=_numbers(layers), heads=_numbers(heads), n_jobs=jobs)
        except BAD_INPUT as error:
            _refuse(error)

    model_name = typer.Argument(help="A transformers model: its name or folder.")
    text_file = typer.Argument(help="A text file in UTF-8.")
    target = typer.Option(help="The .npz or .safetensors file to write.")

    @cli.command()
    def capture(
        model: Annotated[str, model_name],
        text: Annotated[Path, text_file],
        out: Annotated[Path, target],
        n: Annotated[int | None, prefix] = None,
        layers: Annotated[str | None, some_layers] = None,
        heads: Annotated[str | None, some_heads] = None,
    ) -> None:
        """Run a model once on a text and keep the queries, keys and values of its heads (extra "models")."""
        from hyperattention_ref.maps.map_file import MapFile
        from hyperattention_ref.maps.model_capture import capture_text

        try:
            chosen = {"layers": _numbers(layers), "heads": _numbers(heads)}
            with MapFile(capture_text(model, text, out, n=n, **chosen)) as written:
                tokens = written.tokens(written.layers[0])
                print(f"{out}: {len(written)} heads of {len(written.layers)} layers, {tokens} tokens")
        except BAD_INPUT as error:
            _refuse(error)


HOST_ONLY = ("value_dim", "against", "family", "dtype", "seconds", "measure", "threads")
"""Options of `bench` that mean nothing with --gpu."""


def add_bench(cli) -> None:
    """The command that times."""
    import typer

    from hyperattention_ref.bench.cases import BenchSettings, available_cores

    names = ("n", "heads", "dim", "block_size", "sample_size", "min_seq_len", "dtype", "repeats", "seconds", "seed")
    usual = {name: getattr(BenchSettings, name) for name in names}
    lengths = typer.Option("--n", help="Tokens; may be repeated. Default: " + ", ".join(map(str, usual["n"])) + ".")
    engines = typer.Option(
        "--backend", help="Backend; may be repeated. All is compared with the first. Default: numba."
    )
    rivals = typer.Option(help="Attention of other packages, separated by commas, or none; extra “bench”.")
    kinds = typer.Option("--family", help="Inputs for error against time; may be repeated.")
    values = typer.Option(help="Coordinates of a value; default as of a query.")
    causal = typer.Option("--causal", help="Causal attention.")
    leaf = typer.Option(help="Causal ranges up to this length are exact.")
    patience = typer.Option(
        help="A call stops at three runs, or where it is, once it has taken so many seconds in all."
    )
    batch = typer.Option(help="Heads, one as large as the other.")
    size = typer.Option(help="Coordinates of a query.")
    block = typer.Option(help="Keys in a block.")
    samples = typer.Option(help="Sampled keys.")
    floats = typer.Option(help="Type of the inputs: float32 or float64.")
    runs = typer.Option(help="Timed runs of each call.")
    start = typer.Option(help="Seed of everything random.")
    sums = typer.Option("--measure", help="Also time the exact measures: α, κ and a step towards ‖P‖.")
    cores = typer.Option(help="Threads of every library alike; default: all cores that may be used.")
    folder = typer.Option(
        help="Folder of the results; a benchmark that was interrupted resumes there. Default: bench, or bench-gpu."
    )
    on_gpu = typer.Option(
        "--gpu", help="Time the GPU backends on this machine’s GPU beside PyTorch’s SDPA, with lengths of its own."
    )
    patience_gpu = typer.Option("--minutes", help="With --gpu: what would end later is left out. Default: 8.")

    @cli.command()
    def bench(
        context: typer.Context,
        n: Annotated[list[int] | None, lengths] = None,
        heads: Annotated[int, batch] = usual["heads"],
        dim: Annotated[int, size] = usual["dim"],
        value_dim: Annotated[int | None, values] = None,
        causal: Annotated[bool, causal] = False,
        backend: Annotated[list[str] | None, engines] = None,
        against: Annotated[str, rivals] = ",".join(BenchSettings.against),
        family: Annotated[list[str] | None, kinds] = None,
        block_size: Annotated[int, block] = usual["block_size"],
        sample_size: Annotated[int, samples] = usual["sample_size"],
        min_seq_len: Annotated[int, leaf] = usual["min_seq_len"],
        dtype: Annotated[str, floats] = usual["dtype"],
        repeats: Annotated[int, runs] = usual["repeats"],
        seconds: Annotated[float, patience] = usual["seconds"],
        measure: Annotated[bool, sums] = False,
        threads: Annotated[int | None, cores] = None,
        seed: Annotated[int, start] = usual["seed"],
        out: Annotated[Path | None, folder] = None,
        gpu: Annotated[bool, on_gpu] = False,
        minutes: Annotated[float | None, patience_gpu] = None,
    ) -> None:
        """Time HyperAttention on this machine beside exact attention and other packages, every answer checked first.

        Exit code 1 when an answer is wrong; it is not timed.
        """
        from rich.console import Console

        from hyperattention_ref.bench.console import run

        console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 150)
        if gpu:
            given = {name: x for name, x in context.params.items() if _is_given(context, name)}
            if not bench_gpu(given, console):
                raise typer.Exit(1)
            return
        try:
            if minutes is not None:
                raise ValueError("--minutes belongs to --gpu; here --seconds limits the runs of a call")
            settings = BenchSettings(
                n=tuple(n or usual["n"]),
                heads=heads,
                dim=dim,
                value_dim=value_dim,
                is_causal=causal,
                backends=tuple(backend or BenchSettings.backends),
                against=() if against == "none" else tuple(name.strip() for name in against.split(",")),
                families=tuple(family or BenchSettings.families),
                block_size=block_size,
                sample_size=sample_size,
                min_seq_len=min_seq_len,
                dtype=dtype,
                repeats=repeats,
                seconds=seconds,
                measure=measure,
                threads=available_cores() if threads is None else threads,
                seed=seed,
            )
            is_right = run(out or Path("bench"), settings, console)
        except BAD_INPUT as error:
            _refuse(error)
        if not is_right:
            raise typer.Exit(1)


def bench_gpu(given: dict, console) -> bool:
    """`bench --gpu` with the options that were given; whether every answer was right."""
    from hyperattention_ref.bench.gpu.cases import GpuSettings
    from hyperattention_ref.bench.gpu.console import run as run_gpu

    command = shlex.join(["hyperattention", *sys.argv[1:]])
    try:
        if senseless := [f"--{name.replace('_', '-')}" for name in HOST_ONLY if name in given]:
            raise ValueError(f"{', '.join(senseless)}: not with --gpu; see `hyperattention bench --help`")
        names = ("heads", "block_size", "sample_size", "min_seq_len", "repeats", "seed")
        options = {name: given[name] for name in names if name in given}
        options |= {to: tuple(given[name]) for to, name in (("n", "n"), ("backends", "backend")) if name in given}
        options |= {"dims": (given["dim"],)} if "dim" in given else {}
        options |= {"causal": (True,)} if "causal" in given else {}
        settings = GpuSettings(**options)
        return run_gpu(given.get("out", Path("bench-gpu")), settings, given.get("minutes", 8.0), command, console)
    except BAD_INPUT as error:
        _refuse(error)


def _is_given(context, name: str) -> bool:
    """Whether an option stands on the command line, or in a variable of the environment."""
    return context.get_parameter_source(name).name != "DEFAULT"


def _numbers(given: str | None) -> list[int] | None:
    """Layers or heads, as in 0,1,5."""
    if given is None:
        return None
    parts = [part.strip() for part in given.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{given!r} is no list of numbers from zero, such as 0,1,5")
    return [int(part) for part in parts]


def _refuse(reason) -> NoReturn:
    """End with exit code 2 and one line that says why."""
    if isinstance(reason, OSError) and reason.strerror:
        reason = f"{reason.filename}: {reason.strerror}"
    print(f"hyperattention: {reason}", file=sys.stderr)
    raise SystemExit(2)


def run(settings, out: Path) -> bool:
    """Check, show, write; return whether every outcome is as expected."""
    from rich.console import Console

    from hyperattention_ref.verify.console import heads_tables, verdict_tables
    from hyperattention_ref.verify.page import write_report
    from hyperattention_ref.verify.report import Report, environment

    # A pipe or a log file has no width; the table needs one at which its columns are not folded.
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 150)
    start = time.perf_counter()
    verdicts, heads = measure(settings, console)
    report = Report(settings, verdicts, heads, time.perf_counter() - start, environment())
    for table in (*verdict_tables(report, console.width), *heads_tables(report)):
        console.print(table)
    console.print("", *report.findings, "", sep="\n", highlight=False)
    console.print(report.summary, style="bold" if report.as_expected else "bold red", highlight=False)
    write_report(report, out)
    console.print(f"{report.seconds:.0f} s. The report is", out / "report.html", highlight=False, soft_wrap=True)
    return report.as_expected


def measure(settings, console):
    """All verdicts and the real heads, under a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from hyperattention_ref import proofs_checks
    from hyperattention_ref.verify.sample_head_measures import measure_sample_heads

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    verdicts: list[proofs_checks.Verdict] = []
    with Progress(*columns, console=console, transient=True) as progress:
        statements = proofs_checks.STATEMENTS
        task = progress.add_task("", total=len(statements) + 1, completed=-1)

        def step(name: str) -> None:
            unexpected = sum(not verdict.as_expected for verdict in verdicts)
            progress.update(task, advance=1, description=f"{name}, {unexpected} unexpected so far")

        for verdict in proofs_checks.run_checks(settings, only=statements, progress=step):
            verdicts.append(verdict)
        step("real heads")
        heads = measure_sample_heads(epsilon=settings.epsilon, seed=settings.seed)
    return tuple(verdicts), heads
