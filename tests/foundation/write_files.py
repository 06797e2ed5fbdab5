"""A process that writes a file: write_files.py KIND PATH TIMES LARGEST. Prints the number and the file of an error."""

import resource
import signal
import sys
from pathlib import Path

import numpy as np

from hyperattention_ref import Plan
from hyperattention_ref.maps.attention_map import LayerMaps
from hyperattention_ref.maps.map_file import MapFile, MapWriter
from hyperattention_ref.pages.results_folder import ResultsFolder

RECORD = {"x": "x" * 60000}


def write_plan(path):
    Plan.from_views([], shape=(9000, 9000), exact_keys=np.arange(9000)).save(path)


def read_plan(path):
    assert Plan.load(path).n_q == 9000


def write_maps(path):
    x = np.ones((1, 3000, 4))
    with MapWriter(path) as writer:
        writer.add(LayerMaps(0, (0,), x, x, x, (0,), 1.0, False))


def read_maps(path):
    with MapFile(path) as maps:
        assert len(list(maps)) == 1


def claim(path):
    ResultsFolder(path, "record.json", "parts").claim(RECORD, "another")


KINDS = {
    "plan.npz": (write_plan, read_plan),
    "maps.npz": (write_maps, read_maps),
    "maps.safetensors": (write_maps, read_maps),
    "results": (claim, claim),
}

if __name__ == "__main__":
    kind, path, times, largest = sys.argv[1:]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # beyond the limit a write fails, instead of a signal
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), int(largest)))
    try:
        for _ in range(int(times)):
            KINDS[kind][0](Path(path))
    except OSError as error:
        print(error.errno, error.filename, sep="\n")
