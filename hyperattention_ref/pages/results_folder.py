"""The folder of a long run: one JSON file for each part, written when the part is finished, so that the run resumes.

The file of a part is an object of four entries: `name`, of the part; `record`, the SHA-256 of what the run is of;
`result`; and `sha256`, of the other three. So a result that was edited, renamed or copied from another run is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from hyperattention_ref.foundation import strict_json
from hyperattention_ref.foundation.named_file import named_file
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.foundation.whole_file import PARTIAL, write_whole

Part = TypeVar("Part", bound=Result)
ENTRIES = ("name", "record", "result", "sha256")


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
        names = {x.name for x in self.path.iterdir()} if self.path.exists() else set()
        if self.record in names:
            differences = list(_differences(self.content(), json.loads(json.dumps(content))))
            if differences:
                facts = f"{'; '.join(differences):.1000}"
                raise ValueError(f"{self.path} holds {other}: {facts}; name another folder, or remove it")
        elif not all(fnmatch(name, PARTIAL) for name in names):
            raise ValueError(f"{self.path} holds files of something else; name another folder")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(record, json.dumps(content).encode())
        (self.path / self.parts).mkdir(exist_ok=True)

    def file(self, name: str) -> Path:
        """The file of a part."""
        return self.path / self.parts / f"{name}.json"

    def read(self, name: str, kind: type[Part]) -> Part:
        """A finished part.

        Raises
        ------
        ValueError : the file holds something else, or not what was written.
        """
        from pydantic import TypeAdapter, ValidationError

        file, run = self.file(name), self._record_digest()
        with named_file(file, "holds no finished result", "remove it and run again"):
            try:
                return TypeAdapter(kind).validate_json(json.dumps(self._result(name, run)))
            except ValidationError as error:
                fault = error.errors()[0]
                place = ".".join(map(str, fault["loc"]))
                raise ValueError(f"{place}: {fault['msg']}" if place else fault["msg"]) from error

    def write(self, name: str, part: Part) -> None:
        """Keep a finished part."""
        content = {"name": name, "record": self._record_digest(), "result": part.to_dict()}
        text = json.dumps({**content, "sha256": _digest(content)}, allow_nan=False)
        write_whole(self.file(name), text.encode())

    def _result(self, name: str, run: str) -> Any:
        """What the file of a part holds, after a check that it is what was written, for this part and this run."""
        content = strict_json.entries("it", strict_json.read(self.file(name)), ENTRIES)
        digest = content.pop("sha256")
        if digest != _digest(content):
            raise ValueError("its checksum differs, so that it was changed after it was written")
        if content["name"] != name:
            raise ValueError(f"it was written as {content['name']!r}")
        if content["record"] != run:
            raise ValueError(f"it was written for another run than the one in {self.record}")
        return content["result"]

    def content(self) -> Any:
        """What the record says that the run is of."""
        record = self.path / self.record
        with named_file(record, "holds no record of a run", "name another folder, or remove it"):
            return strict_json.read(record)

    def _record_digest(self) -> str:
        return _digest(self.content())

    def once(
        self, name: str, run: Callable[[], Part], kind: type[Part], keep: Callable[[Part], bool] | None = None
    ) -> Part:
        """A part: read if it is finished, else run, and then kept unless `keep` returns False."""
        if self.file(name).exists():
            return self.read(name, kind)
        part = run()
        if keep is None or keep(part):
            self.write(name, part)
        return part


def file_stamps(folder) -> dict[str, list[int]]:
    """Size and time of change of every file in a folder, since weights take long to read; nothing if it is none."""
    parts = sorted(x for x in Path(folder).rglob("*") if x.is_file()) if Path(folder).is_dir() else []
    return {str(x.relative_to(folder)): [(stat := x.stat()).st_size, stat.st_mtime_ns] for x in parts}


def _digest(x) -> str:
    return hashlib.sha256(_canonical(x)).hexdigest()


def _canonical(x) -> bytes:
    """JSON that depends on neither the order of keys nor on spaces, and tells 1 from 1.0 and True."""
    return json.dumps(x, sort_keys=True, separators=(",", ":")).encode()


def _differences(there, here) -> Iterator[str]:
    """Where two records differ, and what each says, such as "settings.seed is 3 there and 4 here"."""
    old, new = dict(_entries(there)), dict(_entries(here))
    for name in {**new, **old}:
        said = [f"{_canonical(x[name]).decode():.80}" if name in x else "absent" for x in (old, new)]
        if said[0] != said[1]:
            yield f"{name or 'all of it'} is {said[0]} there and {said[1]} here"


def _entries(x, name: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a record that are no objects themselves, by their path."""
    if isinstance(x, dict):
        for key, item in x.items():
            yield from _entries(item, f"{name}.{key}" if name else key)
    else:
        yield name, x
