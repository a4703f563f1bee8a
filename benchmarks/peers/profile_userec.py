"""Where userec's time goes in the race: the share of each operator in training steps, and in an evaluation of all users.

    python benchmarks/peers/profile_userec.py --data-dir ../shared/data --model sasrec --length 200

The settings are those of `run_userec.py`. Shares are of the operators' own time, by torch's profiler, on as many threads as
OMP_NUM_THREADS says; the profiler's own cost lies on small operators."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from protocol import Watch, words
from run_userec import Training, evaluate, settings
from torch.profiler import ProfilerActivity, profile
from userec_datasets.movielens import MovieLens1M

from userec.dataset import cache
from userec.registry import load
from userec.testing import open_session

WARM: Final = 5
STEPS: Final = 25
ROWS: Final = 14
"""Operators told, the greatest first."""


def shares(what: str, work: Callable[[], object]) -> None:
    """Print the operators that take most of the work."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    found = sorted(seen.key_averages(), key=lambda each: -each.self_cpu_time_total)
    whole = sum(each.self_cpu_time_total for each in found)
    print(f"{what}: {whole / 1e6:.2f} s in operators")
    for each in found[:ROWS]:
        print(f"  {each.self_cpu_time_total / whole:6.1%}  {each.key} ({each.count} calls)")


def main() -> None:
    """Train a few steps, then evaluate, under the profiler."""
    given = words(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        coded = cache.load(MovieLens1M(MovieLens1M.Config(), given.data_dir), Path(folder))
        torch.manual_seed(given.seed)
        session = open_session(load().plugins, coded, settings(given))
        model = session.compose(session.run.experiment)
        Training(session, model, WARM).go(Watch(0))
        training = Training(session, model, STEPS)
        shares(f"{STEPS} training steps", lambda: training.go(Watch(0)))
        evaluate(session, model)
        shares("evaluation", lambda: evaluate(session, model))


if __name__ == "__main__":
    main()
