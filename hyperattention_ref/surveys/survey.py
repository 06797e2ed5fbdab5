"""A survey of the heads in a file: in parallel, head by head, resumable."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path

from hyperattention_ref.maps.map_file import MapFile
from hyperattention_ref.pages.results_folder import ResultsFolder
from hyperattention_ref.surveys.head import measure_head, prefix, read_head
from hyperattention_ref.surveys.head_measures import HeadMeasures
from hyperattention_ref.surveys.settings import SurveySettings

_PLACE = attrgetter("layer", "head")


def survey(
    path,
    out,
    settings: SurveySettings | None = None,
    *,
    layers=None,
    heads=None,
    n_jobs: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[HeadMeasures]:
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
    ValueError : no such layer or head, or `out` holds a survey of another file, with other settings, or other files.
    """
    from joblib import Parallel, delayed

    if n_jobs == 0:
        raise ValueError("n_jobs is 0; it must be a number of heads to measure at a time, or -1 for one on each core")
    settings, folder = settings or SurveySettings(), _folder(out)
    with MapFile(path) as maps:  # one read of the file now, rather than an error when half of the heads are measured
        places = _places(maps, layers, heads)
        for place in places:
            prefix(read_head(maps, *place, settings), settings)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = {"file": Path(path).name, "sha256": digest, "settings": settings.to_dict()}
    folder.claim(record, "a survey of another file or with other settings")
    tasks = (delayed(_measure_once)(folder, os.fspath(path), *place, settings) for place in places)
    results: list[HeadMeasures] = []
    for result in Parallel(n_jobs=n_jobs, return_as="generator_unordered")(tasks):
        results.append(result)
        if progress:
            progress(result.name, len(results), len(places))
    return sorted(results, key=_PLACE)


def load_results(out) -> Iterator[HeadMeasures]:
    """The finished heads of a survey folder, by layer and head."""
    folder = _folder(out)
    names = (path.stem for path in (folder.path / folder.parts).glob("L*H*.json"))
    yield from sorted((folder.read(name, HeadMeasures) for name in names), key=_PLACE)


def load_survey(out) -> tuple[dict, list[HeadMeasures]]:
    """The record of a survey folder and its finished heads.

    Raises
    ------
    ValueError : `out` is no folder of a survey, holds no finished head, or something that was not written so.
    """
    folder = _folder(out)
    if not (folder.path / folder.record).is_file():
        raise ValueError(f"{out} is no survey: it has no {folder.record}; name the --out folder of another run")
    record, heads = folder.content(), list(load_results(out))
    if not heads:
        raise ValueError(f"{out} has no finished head; run its command to the end, or name another folder")
    return record, heads


def _folder(out) -> ResultsFolder:
    return ResultsFolder(Path(out), "survey.json", "heads")


def _measure_once(folder: ResultsFolder, path: str, layer: int, head: int, settings: SurveySettings) -> HeadMeasures:
    def measure() -> HeadMeasures:
        with MapFile(path) as maps:
            return measure_head(read_head(maps, layer, head, settings), settings)

    return folder.once(f"L{layer}H{head}", measure, HeadMeasures)


def _places(maps: MapFile, layers, heads) -> list[tuple[int, int]]:
    """Layer and head of everything to measure."""
    known = {layer: maps.heads(layer) for layer in sorted(set(layers or maps.layers))}
    for head in heads or ():
        if all(head not in numbers for numbers in known.values()):
            raise ValueError(f"head {head} is in none of the requested layers; {maps.path} holds {known}")
    return [(layer, head) for layer, numbers in known.items() for head in numbers if heads is None or head in heads]
