"""The folder of a long run: one JSON file for each part, written when the part is finished, so that the run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.foundation.whole_file import write_whole

Part = TypeVar("Part", bound=Result)


@dataclass(frozen=True)
class ResultsFolder:
    """Where the parts of one run are kept; it can be pickled, so that workers can share it.

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
        if record.exists():
            if not self._is_of(content):
                raise ValueError(f"{self.path} holds {other}; name another folder, or remove it")
        elif self.path.exists() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} holds files of something else; name another folder")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(record, json.dumps(content).encode())
        (self.path / self.parts).mkdir(exist_ok=True)

    def _is_of(self, content: dict) -> bool:
        """Whether the record says the same, whatever the order of its keys."""
        try:
            return json.loads((self.path / self.record).read_bytes()) == json.loads(json.dumps(content))
        except ValueError:
            return False

    def file(self, name: str) -> Path:
        """The file of a part."""
        return self.path / self.parts / f"{name}.json"

    def read(self, name: str, kind: type[Part]) -> Part:
        """A finished part.

        Raises
        ------
        ValueError : the file holds something else.
        """
        from pydantic import TypeAdapter, ValidationError

        file = self.file(name)
        try:
            return TypeAdapter(kind).validate_json(file.read_bytes())
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"]))
            reason = f"{place}: {fault['msg']}" if place else fault["msg"]
            raise ValueError(f"{file} holds no finished result ({reason}); remove it and run again") from error

    def once(
        self, name: str, run: Callable[[], Part], kind: type[Part], keep: Callable[[Part], bool] | None = None
    ) -> Part:
        """A part: read if it is finished, else run, and then kept unless `keep` returns False."""
        if self.file(name).exists():
            return self.read(name, kind)
        part = run()
        if keep is None or keep(part):
            write_whole(self.file(name), json.dumps(part.to_dict(), allow_nan=False).encode())
        return part
