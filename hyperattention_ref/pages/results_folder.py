"""The folder of a long run: one JSON file for each part, written when the part is finished, so that the run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.files import write_whole

Part = TypeVar("Part", bound=Result)


@dataclass(frozen=True)
class ResultsFolder:
    """Where the parts of one run are kept.

    Attributes
    ----------
    path : the folder.
    record : name of the file that says what the run is of.
    parts : name of the folder of the parts.
    """

    path: Path
    record: str
    parts: str

    def claim(self, content: dict, other: str) -> None:
        """Write the record, or refuse a folder that holds something else.

        Parameters
        ----------
        content : what the run is of, for `json.dumps`.
        other : what the folder holds if its record differs, such as "a survey with other settings".
        """
        record = self.path / self.record
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is no folder; name a folder for the results")
        if record.exists() and record.read_text(encoding="utf-8") != json.dumps(content):
            raise ValueError(f"{self.path} holds {other}; name another folder, or remove it")
        if not record.exists() and self.path.exists() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} holds files of something else; name another folder")
        (self.path / self.parts).mkdir(parents=True, exist_ok=True)
        write_whole(record, json.dumps(content).encode())

    def file(self, name: str) -> Path:
        """The file of a part."""
        return self.path / self.parts / f"{name}.json"

    def read(self, name: str, kind: type[Part]) -> Part:
        """A finished part."""
        from pydantic import TypeAdapter

        return TypeAdapter(kind).validate_json(self.file(name).read_bytes())

    def once(self, name: str, run: Callable[[], Part], kind: type[Part], keep: Callable[[Part], bool] | None = None):
        """A part: from its file if it is finished, else from `run`, and then kept unless `keep` says no."""
        if self.file(name).exists():
            return self.read(name, kind)
        part = run()
        if keep is None or keep(part):
            write_whole(self.file(name), json.dumps(part.to_dict(), allow_nan=False).encode())
        return part
