"""Kill surveys at random times, resume each until it is done: kill_surveys.py MAPS FOLDER KILLS. Prints the kills.

Each run is a fork of this process, which has made a survey itself, so that a run starts at once.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import hyperattention_ref as hr

SETTINGS = hr.SurveySettings(recipes=("paper", "heavy", "window_sinks"), budget=16, seed=3, backend="reference")


def start(maps, out):
    child = os.fork()
    if not child:
        status = 1
        try:
            hr.survey(maps, out, SETTINGS)
            status = 0
        finally:
            os._exit(status)
    return child


def finished_before(child, seconds):
    """Whether the child ended by itself, in which case it must have succeeded; else it is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


def main(maps, folder, wanted):
    for _ in range(2):  # a run that measures, and one that reads
        hr.survey(maps, folder / "warm", SETTINGS)
    began = time.monotonic()
    assert finished_before(start(maps, folder / "whole"), 600)
    whole = time.monotonic() - began
    rng, kills, series = random.Random(0), 0, 0
    while kills < wanted:
        series += 1
        while kills < wanted and not finished_before(
            start(maps, folder / f"killed{series}"), rng.uniform(0, 0.7 * whole)
        ):
            kills += 1
    assert finished_before(start(maps, folder / f"killed{series}"), 600)
    print(kills, series)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
