"""A matrix of the user in a `.npz` file: query, key and value of one head, and what is known of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from hyperattention_ref.foundation.named_file import named_file
from hyperattention_ref.foundation.npz_file import NpzFile
from hyperattention_ref.proofs_checks.dense import Dense, check_size

PARTS = ("query", "key", "value")
FACTS = ("scale", "is_causal")
CANNOT = "holds no matrix that can be checked"
REQUIREMENT = (
    "save query (n_q, d), key (n_k, d) and value (n_k, d_v), and perhaps mask (n_q, n_k), scale and is_causal, by "
    "np.savez"
)


def read_matrix(path: Path) -> Dense:
    """The matrix in a file.

    Derived: the format is defined here.

    Raises
    ------
    OSError, TypeError, ValueError : in one line that names the file.
    """
    with named_file(path, CANNOT, REQUIREMENT):
        arrays = _arrays(path)
    with named_file(path, CANNOT):
        return Dense.of_matrix(SimpleNamespace(**arrays, name=path.name))


def _arrays(path: Path) -> dict:
    """Every array by its name, after a check of the names and, before anything large is read, of the size."""
    with NpzFile(path) as file:
        shapes = {name: member.shape for name, member in file.members.items()}
        if missing := [name for name in PARTS if name not in shapes]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        if unknown := sorted(set(shapes) - {*PARTS, *FACTS, "mask"}):
            raise ValueError(f"it holds {', '.join(unknown)}, too")
        if wrong := [name for name in PARTS if len(shapes[name]) != 2]:
            raise ValueError(f"{wrong[0]} has shape {shapes[wrong[0]]}; it must be of one head")
        if wrong := [name for name in FACTS if shapes.get(name)]:
            raise ValueError(f"{wrong[0]} has shape {shapes[wrong[0]]}; it must be single")
        check_size(shapes["query"][0], shapes["key"][0])
        arrays = {name: file.read(name) for name in shapes}
    return arrays | {name: arrays[name].item() for name in FACTS if name in arrays}
