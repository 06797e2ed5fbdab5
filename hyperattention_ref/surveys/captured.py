"""The maps of a model for a survey: captured to a file that is kept, or to one that is gone afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hyperattention_ref.foundation import strict_json
from hyperattention_ref.foundation.named_file import named_file
from hyperattention_ref.maps.map_file import MapFile
from hyperattention_ref.maps.model_capture import capture_text
from hyperattention_ref.pages.files import write_json
from hyperattention_ref.pages.results_folder import file_stamps
from hyperattention_ref.surveys.head_measures import HeadMeasures
from hyperattention_ref.surveys.settings import SurveySettings
from hyperattention_ref.surveys.survey import load_results

FINISHED = "finished.json"
"""The file in a survey's folder that says which model and text it has measured to the end."""


@contextmanager
def captured(model: str, text: Path, keep: Path | None, *, n, layers, heads) -> Iterator[Path]:
    """A file of a model's maps on a text; `keep` is used if it is there, and else made.

    Raises
    ------
    ValueError : `keep` holds the maps of another model or text; and as `capture_text`.
    """
    if keep is not None:
        if keep.exists():
            _check_kept(keep, model, text)
        else:
            capture_text(model, text, keep, n=n, layers=layers, heads=heads)
        yield keep
        return
    with TemporaryDirectory(prefix="hyperattention-") as folder:
        yield capture_text(model, text, Path(folder) / f"{Path(model).name}.npz", n=n, layers=layers, heads=heads)


def asked_for(model: str, text: Path, settings: SurveySettings, *, layers, heads) -> dict:
    """What decides the results of a survey of a model, for `finished` and `note_finished`."""
    return {
        "model": model,
        "files": file_stamps(model),
        "text": hashlib.sha256(text.read_bytes()).hexdigest(),
        "layers": layers,
        "heads": heads,
        "settings": settings.to_dict(),
    }


def finished(out: Path, asked: dict) -> list[HeadMeasures] | None:
    """The heads that were asked for, if a run measured them all; None if it must be run."""
    path = out / FINISHED
    if not path.exists():
        return None
    with named_file(path, "is damaged", "remove it and run again"):
        content = strict_json.entries("it", strict_json.read(path), ("asked", "heads"))
        if content["asked"] != asked:
            return None
        names = set(content["heads"])
    heads = [head for head in load_results(out) if head.name in names]
    return heads if len(heads) == len(names) else None


def note_finished(out: Path, asked: dict, heads: Sequence[HeadMeasures]) -> None:
    """Keep what `finished` looks up."""
    write_json(out / FINISHED, {"asked": asked, "heads": [head.name for head in heads]})


def _check_kept(keep: Path, model: str, text: Path) -> None:
    with MapFile(keep) as maps:
        if maps.model != model or not maps.source.startswith(f"{text.name}, "):
            raise ValueError(
                f"{keep} holds maps of {maps.model or 'no model'} on {maps.source or 'no text'}, not of {model} on "
                f"{text.name}; name another file, or remove it"
            )
