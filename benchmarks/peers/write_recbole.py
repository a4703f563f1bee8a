"""MovieLens-1M as RecBole's atomic file, written before anything of RecBole is timed; one line of JSON: what the writing took.

python benchmarks/peers/write_recbole.py --data-dir ../shared/data --atomic FOLDER"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from protocol import NAME, ordered, peak_mb, ratings


def main() -> None:
    """Its times are float32, too coarse for seconds: a user's times are his events' numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--atomic", type=Path, required=True)
    given = parser.parse_args()
    began = time.perf_counter()
    frame, _ = ordered(ratings(given.data_dir))
    number = np.arange(len(frame)) - np.searchsorted(frame["user"], frame["user"])
    columns = {"user_id:token": frame["user"], "item_id:token": frame["item"], "timestamp:float": number}
    (given.atomic / NAME).mkdir(parents=True)
    pd.DataFrame(columns).to_csv(given.atomic / NAME / f"{NAME}.inter", sep="\t", index=False)
    print(json.dumps({"write_s": time.perf_counter() - began, "peak_mb": peak_mb(), "events": len(frame)}), flush=True)


if __name__ == "__main__":
    main()
