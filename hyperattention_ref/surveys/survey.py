"""A survey of the heads in a file: in parallel, head by head, resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hyperattention_ref.maps.map_file import MapFile
from hyperattention_ref.surveys.head import SurveySettings, measure_head, prefix


def survey(
    path,
    out,
    settings: SurveySettings | None = None,
    *,
    layers=None,
    heads=None,
    n_jobs: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[dict]:
    """Measure the heads in a file, in parallel and resumably.

    Derived: joblib runs the heads; `joblib.parallel_config(backend="dask")` or `"ray"` puts them on a cluster whose
    workers see `path` and `out`.

    Parameters
    ----------
    path : a file of maps, see `MapFile`.
    out : folder for one JSON file per head, written when the head is finished; finished heads are not measured again.
    settings : SurveySettings.
    layers, heads : numbers to measure; None for all.
    n_jobs : joblib's; heads measured at a time.
    progress : called with the name of a finished head, how many are finished, and how many there are.

    Returns
    -------
    list of what `measure_head` returns, by layer and head.

    Raises
    ------
    ValueError : no such layer or head, or `out` holds a survey of another file or with other settings.
    """
    from joblib import Parallel, delayed

    if n_jobs == 0:
        raise ValueError("n_jobs is 0; it must be a number of heads to measure at a time, or -1 for one on each core")
    settings, out = settings or SurveySettings(), Path(out)
    places = _places(path, layers, heads)
    with MapFile(path) as maps:  # one read of the file now, rather than an error when half of the heads are measured
        for place in places:
            prefix(maps.head(*place), settings)
    _claim(out, path, settings)
    tasks = (delayed(_measure_once)(os.fspath(path), place, out, settings) for place in places)
    results = []
    for result in Parallel(n_jobs=n_jobs, return_as="generator_unordered")(tasks):
        results.append(result)
        if progress:
            progress(result["name"], len(results), len(places))
    return sorted(results, key=_place)


def _measure_once(path: str, place: tuple[int, int], out: Path, settings: SurveySettings) -> dict:
    layer, head = place
    finished = out / "heads" / f"L{layer}H{head}.json"
    if finished.exists():
        return json.loads(finished.read_text())
    with MapFile(path) as maps:
        result = measure_head(maps.head(layer, head), settings)
    _write(finished, result)
    return result


def _places(path, layers, heads) -> list[tuple[int, int]]:
    with MapFile(path) as maps:
        known = {layer: maps.heads(layer) for layer in maps.layers}
    for layer in layers or ():
        if layer not in known:
            raise ValueError(f"layer {layer} is not in {path}; it holds the layers {sorted(known)}")
    chosen = [
        (layer, head)
        for layer in sorted(set(layers or known))
        for head in known[layer]
        if heads is None or head in heads
    ]
    for head in heads or ():
        if all(head != h for _, h in chosen):
            raise ValueError(f"head {head} is in none of the layers asked for; {path} holds {known}")
    return chosen


def _claim(out: Path, path, settings: SurveySettings) -> None:
    """Write what this folder is a survey of, or refuse a folder that is one of something else."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    claim = {"file": Path(path).name, "sha256": digest, "settings": settings.to_dict()}
    record = out / "survey.json"
    if record.exists() and record.read_text() != json.dumps(claim):
        raise ValueError(f"{out} holds a survey of another file or with other settings; name another, or remove it")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is no folder; name a folder for the results")
    if not record.exists() and (out / "heads").exists() and any((out / "heads").iterdir()):
        raise ValueError(f"{out}/heads holds files of something else; name another folder")
    (out / "heads").mkdir(parents=True, exist_ok=True)
    _write(record, claim)


def _write(path: Path, content: dict) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(content))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_results(out) -> Iterator[dict]:
    """The finished heads of a survey folder, by layer and head."""
    results = [json.loads(path.read_text()) for path in (Path(out) / "heads").glob("L*H*.json")]
    yield from sorted(results, key=_place)


def _place(result: dict) -> tuple[int, int]:
    return result["layer"], result["head"]
