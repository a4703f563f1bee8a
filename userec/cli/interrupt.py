"""Ctrl-C and SIGTERM while a run lasts: the step in progress finishes, a checkpoint is kept, and a line says how to go on."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from userec.engine import checkpoint

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """`with Interrupts() as interrupts:` turns both signals into KeyboardInterrupt; inside `with interrupts.shield():` the first
    waits for the end of the block, a second ends it at once. The handlers of before are restored; what was ignored (`nohup`)
    stays ignored."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.depth = 0
        self.waiting = False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            ours = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
            self.before = {one: signal.signal(one, self._take) for one in ours}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self.before.items():
            signal.signal(one, handler)

    @property
    def code(self) -> int:
        """The exit code that says which signal it was, as shells have it: 130 or 143."""
        return 128 + (self.number or signal.SIGINT)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """While the block lasts, the first signal waits. Blocks may be nested."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
        if self.waiting and not self.depth:
            self.waiting = False
            raise KeyboardInterrupt

    def _take(self, number: int, frame: FrameType | None) -> None:
        first, self.number = self.number is None, number
        self.waiting = first and self.depth > 0
        if not self.waiting:
            raise KeyboardInterrupt


def farewell(out: Path, data_dir: Path | None, blocked: Sequence[str]) -> str:
    """What an interrupted run is told: how far it came, and the command that goes on with it where a checkpoint is kept."""
    found = checkpoint.latest(out / "checkpoint")
    if found is None:
        return "interrupted"
    words = [
        "userec",
        *(word for name in blocked for word in ("-p", f"no:{name}")),
        "run",
        "--config",
        str(out / "experiment.toml"),
    ]
    words += ["--out", str(out), *(["--data-dir", str(data_dir)] if data_dir is not None else []), "--resume"]
    place = f"step {found['step']} of {found['total']}" if "total" in found else "the end of training"
    where = f"at {place}" if not found.get("progress", {"done": True})["done"] else f"in evaluation, after {place}"
    return f"interrupted {where}; the checkpoint is kept: go on with {shlex.join(words)}"
