"""The kernels of this machine, each beside the plain torch form that it replaces, in one run:

    python benchmarks/kernels.py [--data-dir ../shared/data] [--save]

Random inputs at the sizes named. Every pair is measured in turn, nine times; what is told are medians and the ratio of medians.
`train` is forward and backward. Memory is the growth of a fresh process's peak in one training call, gradients included. Then
SASRec and TWIN train on MovieLens-1M with their own recipes: before kernels were plugins, with `USEREC_KERNELS=torch`, and now.
`--save`
keeps the figures in benchmarks/results/kernels.json, which docs/results.md is made from."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from measure import HERE, WORK, publish

from userec.builtin.kernels import userec_kernels
from userec.kernel.cpu.products import choice
from userec.kernel.dispatch import Kernels
from userec.kernel.jagged import offsets_of

TIMES: Final = 9
BEFORE: Final = "16dda01"
"""The last commit before kernels were plugins."""
Arguments = dict[str, Any]


def draw(*shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape)


def user_lengths(users: int, mean: float, longest: int) -> list[int]:
    """Lengths as users have them: log-normal, of that mean within 1, the longest as said."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(users, generator=generator).mul(0.75).exp()
    low, high = 1.0, float(longest)
    for _ in range(40):  # the scale at which the mean is right after clipping
        scale = (low + high) / 2
        found = (spread * scale).round().clamp(5, longest)
        found[0] = longest
        low, high = (scale, high) if found.mean() < mean else (low, scale)
    return [int(length) for length in found]


def hstu() -> Arguments:
    """64 users of mean 67, at most 198 events; position and time bias."""
    lengths = user_lengths(64, 67, 198)
    total = sum(lengths)
    time = torch.cat([part.cumsum(0) for part in torch.randint(0, 86_400, (total,)).split(lengths)])
    edges = torch.tensor([1.3512**bucket for bucket in range(1, 129)], dtype=torch.float64).ceil().long()
    return {
        "q": draw(total, 2, 32),
        "k": draw(total, 2, 32),
        "v": draw(total, 2, 32),
        "offsets": offsets_of(lengths),
        "position_table": draw(198, 1),
        "time_table": draw(129, 1),
        "time": time,
        "asked": time + 60,
        "edges": edges,
        "max_len": 198,
        "divisor": 211.0,
    }


def jagged() -> Arguments:
    """The same users, softmax."""
    lengths = user_lengths(64, 67, 198)
    total = sum(lengths)
    rows = {name: draw(total, 2, 32) for name in "qkv"}
    return {**rows, "offsets": offsets_of(lengths), "max_len": 198, "causal": True}


def retention() -> Arguments:
    """16 users of 1,024 events."""
    rows = {name: draw(16 * 1024, 2, 32) for name in "qkv"}
    return {**rows, "decay": torch.tensor([0.97, 0.998]), "offsets": offsets_of([1024] * 16), "max_len": 1024}


def retention_step() -> Arguments:
    """4,096 users, one event each."""
    rows = {name: draw(4096, 4, 64) for name in "qkv"}
    return {**rows, "decay": torch.tensor([0.97, 0.98, 0.99, 0.998]), "state": draw(4096, 4, 64, 64)}


def linear_cross_entropy() -> Arguments:
    """2,048 questions, 50,000 items, width 64."""
    return {
        "x": draw(2048, 64),
        "weight": draw(50_000, 64) / 8,
        "bias": None,
        "target": torch.randint(50_000, (2048,)),
        "reduction": "mean",
    }


def sampled_cross_entropy() -> Arguments:
    """2,048 questions, each with 256 negatives of its own out of 50,000."""
    return {
        "x": draw(2048, 64),
        "weight": draw(50_000, 64) / 8,
        "bias": None,
        "target": torch.randint(50_000, (2048,)),
        "negatives": torch.randint(50_000, (2048, 256)),
        "reduction": "mean",
    }


def hamming() -> Arguments:
    """64 candidates, 10,000 events of 64 bits, the 48 nearest."""
    most = torch.iinfo(torch.int64).max
    return {
        "queries": torch.randint(-most, most, (1, 64, 1)),
        "codes": torch.randint(-most, most, (1, 10_000, 1)),
        "mask": None,
        "count": 48,
    }


def hamming_bits(queries: Tensor, codes: Tensor, mask: None, *, count: int) -> tuple[Tensor, Tensor]:
    """Bits counted one by one, then torch.topk."""
    words = queries.unsqueeze(2) ^ codes.unsqueeze(1)  # [B, C, L, W]
    distance = torch.zeros(words.shape[:3], dtype=torch.int64)
    for bit in range(64):
        distance += ((words >> bit) & 1).sum(-1)
    nearest = distance.topk(count, largest=False)
    return nearest.indices, nearest.values


def hamming_swar(queries: Tensor, codes: Tensor, mask: None, *, count: int) -> tuple[Tensor, Tensor]:
    """Bits counted by adding neighbours within the word, then torch.topk: no tie rule, the quickest in plain torch."""
    words = queries.unsqueeze(2) ^ codes.unsqueeze(1)  # [B, C, L, W]
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    distance = ((words * 0x0101010101010101) >> 56).sum(-1)
    nearest = distance.topk(count, largest=False)
    return nearest.indices, nearest.values


def simhash() -> Arguments:
    """100,000 events of width 64, 64 bits."""
    return {"x": draw(100_000, 64), "planes": draw(64, 64)}


def twin() -> Arguments:
    """TWIN's search: 32 users, 8 questions, 5 candidates, 200 events, 20 kept."""
    allowed = torch.arange(200) < torch.randint(20, 200, (32, 8, 1))
    return {
        "q": draw(32, 8, 4, 5, 16),
        "k": draw(32, 4, 200, 16),
        "v": draw(32, 4, 200, 16),
        "bias": draw(32, 4, 8, 200),
        "allowed": allowed,
        "keep": 20,
    }


def pairs() -> Arguments:
    """256 targets and 50 events each, width 64, 80 units."""
    which = torch.arange(256).repeat_interleave(50)
    return {
        "v": draw(256, 64),
        "x": draw(256 * 50, 64),
        "weight": draw(80, 256) / 16,
        "bias": draw(80),
        "which_v": which,
        "which_x": torch.arange(256 * 50),
        "difference": True,
    }


def augru() -> Arguments:
    """256 users of mean 50, at most 100 events, width 64."""
    lengths = user_lengths(256, 50, 100)
    total = sum(lengths)
    return {
        "x": draw(total, 64),
        "attention": torch.rand(total),
        "weight_ih": draw(192, 64) / 8,
        "weight_hh": draw(192, 64) / 8,
        "bias_ih": draw(192),
        "bias_hh": draw(192),
        "offsets": offsets_of(lengths),
        "max_len": 100,
    }


def bag() -> Arguments:
    """4,096 bags of mean 20 out of 50,000 rows, width 64."""
    lengths = user_lengths(4096, 20, 100)
    return {
        "weight": draw(50_000, 64),
        "ids": torch.randint(50_000, (sum(lengths),)),
        "offsets": offsets_of(lengths),
        "mode": "sum",
    }


def gate() -> Arguments:
    """20,000 events of width 256."""
    return {"x": draw(20_000, 256), "gate": draw(20_000, 256)}


@dataclass(frozen=True)
class Race:
    """One op at one size, against the reference or a rival of its own."""

    op: str
    make: Callable[[], Arguments]
    trains: bool = True
    goal: float | None = None
    rival: Callable[..., Any] | None = None

    @property
    def what(self) -> str:
        """The size, and the rival where it is not the reference."""
        return ". Against: ".join(_line(each) for each in (self.make, self.rival) if each is not None)


def _line(thing: object) -> str:
    return " ".join((thing.__doc__ or "").split()).rstrip(".")


RACES: Final = (
    Race("hstu_attention", hstu, goal=4),
    Race("jagged_attention", jagged),
    Race("retention", retention, goal=10),
    Race("retention_step", retention_step, trains=False),
    Race("linear_cross_entropy", linear_cross_entropy, goal=2),
    Race("sampled_cross_entropy", sampled_cross_entropy),
    Race("hamming_topk", hamming, trains=False, goal=20, rival=hamming_bits),
    Race("hamming_topk", hamming, trains=False, rival=hamming_swar),
    Race("hamming_topk", hamming, trains=False),
    Race("simhash_pack", simhash, trains=False),
    Race("target_attention", twin),
    Race("pair_linear", pairs),
    Race("augru", augru),
    Race("jagged_embedding_bag", bag),
    Race("norm_gate", gate),
)


def call(fn: Callable[..., Any], arguments: Arguments, train: bool) -> float:
    """Seconds of one call."""
    fresh = {
        name: x.detach().requires_grad_(train and x.is_floating_point() and name != "decay") if isinstance(x, Tensor) else x
        for name, x in arguments.items()
    }
    began = time.perf_counter()
    with torch.set_grad_enabled(train):
        out = fn(**fresh)
        if train:
            first = out if isinstance(out, Tensor) else out[0]
            first.sum().backward()
    return time.perf_counter() - began


def in_turn(plain: Callable[..., Any], chosen: Callable[..., Any], arguments: Arguments, train: bool) -> dict[str, float]:
    """Medians in milliseconds of the plain form and of what is chosen here, and their ratio; who goes first changes."""
    taken: dict[str, list[float]] = {"plain": [], "chosen": []}
    sides = [("plain", plain), ("chosen", chosen)]
    for turn in range(TIMES + 1):
        for name, fn in sides if turn % 2 else reversed(sides):
            seconds = call(fn, arguments, train)
            if turn:  # the first of each warms up
                taken[name].append(seconds)
    before, after = (statistics.median(seconds) for seconds in taken.values())
    return {"plain_ms": 1000 * before, "chosen_ms": 1000 * after, "ratio": before / after}


def memory(op: str, choice: str) -> float:
    """MB by which one training call raises the peak of a fresh process."""
    command = [sys.executable, __file__, "--memory", op, choice]
    return float(json.loads(subprocess.check_output(command, text=True)))


def grow(op: str, choice: str) -> float:
    """What `memory` asks of the process it starts: the peak in the call over what was held before it (Linux counts both)."""
    arguments = next(race.make for race in RACES if race.op == op)()
    fn = Kernels(userec_kernels(), use=choice).op(op)
    few = {"x": arguments["x"][:2], "weight": arguments["weight"][:2], "target": torch.tensor([0, 1])}
    call(fn, {**arguments, **few}, True)  # libraries are loaded
    before = _held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    call(fn, arguments, True)
    return _held("VmHWM") - before


def _held(name: str) -> float:
    """MB of this process by the kernel's own count."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 2**10 for line in status.splitlines() if line.startswith(name))


def end_to_end(data_dir: Path) -> dict[str, dict[str, float]]:
    """{model: ms of a training step on MovieLens-1M}: before kernels were plugins, with plain forms, and now, in turn."""
    root, old = HERE.parent, WORK / "before"
    if not old.exists():
        subprocess.run(["git", "worktree", "add", "--detach", str(old), BEFORE], cwd=root, check=True, stdout=sys.stderr)
    sides = {"before": (old, "auto"), "plain": (root, "torch"), "now": (root, "auto")}
    found = {}
    for name, split in (("sasrec", "leave_last"), ("twin", "by_time")):
        taken: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(3):
            for side, (folder, choice_) in sides.items():
                script = str(HERE / "training_step.py")
                command = [sys.executable, script, name, split, "--data-dir", str(data_dir.resolve())]
                path = os.pathsep.join(map(str, (folder, folder / "datasets", *sorted((folder / "plugins").iterdir()))))
                env = {**os.environ, "PYTHONPATH": path, "USEREC_KERNELS": choice_}
                taken[side].append(float(subprocess.check_output(command, text=True, env=env)))
        found[name] = {f"{side}_ms": statistics.median(each) for side, each in taken.items()}
        print(json.dumps({name: found[name]}), file=sys.stderr)
    return found


def figures(data_dir: Path) -> dict[str, Any]:
    """All of them."""
    precision, why = choice()
    torch.manual_seed(0)
    plain, chosen = (Kernels(userec_kernels(), use=use) for use in ("torch", "auto"))
    ops = []
    for race in RACES:
        arguments = race.make()
        cost = plain.reference(race.op).cost
        assert cost is not None
        sides = race.rival or plain.op(race.op), chosen.op(race.op)
        for train in (False, True) if race.trains else (False,):
            goal = race.goal if train or not race.trains or race.op != "linear_cross_entropy" else None  # it is set for training
            about = {"op": race.op, "what": race.what, "train": train, "goal": goal}
            ops.append({**about, "gflop": cost(arguments).flops / 1e9, **in_turn(*sides, arguments, train)})
            print(json.dumps(ops[-1]), file=sys.stderr)
    full, chunked = (memory("linear_cross_entropy", choice) for choice in ("torch", "auto"))
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "large_products": {"precision": precision, "why": why},
        "ops": ops,
        "linear_cross_entropy_memory_mb": {"plain": full, "chosen": chunked, "ratio": full / chunked},
        "training_step": end_to_end(data_dir),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(json.dumps(grow(*sys.argv[2:4])))
    else:
        publish("kernels", __doc__, figures)
