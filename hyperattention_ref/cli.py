"""The command line: `hyperattention verify`, `measure`, `capture`, `bench`, `backends`, `hyperattention --version`.

The console script exists in every installation; its libraries come with the extra `report`, and nothing of them is
imported before it is known that all are there.
"""

# No `from __future__ import annotations`: Typer reads the annotations of functions that are defined inside `_app`.

import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from hyperattention_ref.pages.command import BAD_INPUT, numbers
from hyperattention_ref.pages.command import refuse as _refuse

NEEDED = ("typer", "rich", "matplotlib", "jinja2", "joblib", "threadpoolctl", "pydantic")


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
    from hyperattention_ref.surveys import command as measure
    from hyperattention_ref.verify import command as verify

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

    verify.add_to(cli)
    measure.add_to(cli)
    add_capture(cli)
    add_bench(cli)
    return cli


def add_capture(cli) -> None:
    """The command that keeps real attention maps."""
    import typer

    from hyperattention_ref.surveys.command import HEADS, LAYERS, PREFIX

    model_name = typer.Argument(help="A transformers model: its name or folder.")
    text_file = typer.Argument(help="A text file in UTF-8.")
    target = typer.Option(help="The .npz or .safetensors file to write.")

    @cli.command()
    def capture(
        model: Annotated[str, model_name],
        text: Annotated[Path, text_file],
        out: Annotated[Path, target],
        n: Annotated[int | None, PREFIX] = None,
        layers: Annotated[str | None, LAYERS] = None,
        heads: Annotated[str | None, HEADS] = None,
    ) -> None:
        """Run a model once on a text and keep the queries, keys and values of its heads (extra "models")."""
        from hyperattention_ref.maps.map_file import MapFile
        from hyperattention_ref.maps.model_capture import capture_text

        try:
            file = capture_text(model, text, out, n=n, layers=numbers(layers), heads=numbers(heads))
            with MapFile(file) as maps:
                tokens = maps.tokens(maps.layers[0])
                print(f"{out}: {len(maps)} heads of {len(maps.layers)} layers, {tokens} tokens")
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
