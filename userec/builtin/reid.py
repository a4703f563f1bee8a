"""Evaluator `reid`: is a user known again by the embedding of another stretch of his own history?

Two stretches apart in time, embedded by a frozen encoder and compared by cosine: the newest asks, the older ones of all users
are the gallery. No label is needed, so it judges any encoder that embeds users, whatever it was trained for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from pydantic import Field, PositiveInt

from userec.capability import Can
from userec.config import Config, Ref
from userec.dataset.data import FEWEST
from userec.encoder.contract import Encoder
from userec.evaluator import metrics, statistics, verification
from userec.evaluator.contract import Data, Evaluator, Metric, Split
from userec.evaluator.embed import Embedder, Matrix
from userec.evaluator.ranks import Ranks, Tally
from userec.evaluator.verification import GRID
from userec.markers import hookimpl
from userec.schema import FIRST

TASK = "user"
"""The task of its metrics: which user is it?"""


class ReIDConfig(Config):
    """Settings of `reid`."""

    events: int = Field(50, ge=FEWEST)
    """Longest piece of a user; a user's pieces are equally long."""
    shots: PositiveInt = 1
    """Older pieces of each user in the gallery."""
    gap: int = Field(0, ge=0)
    """Seconds that have to lie between the older pieces and the newest."""
    gallery: int = Field(10_000, ge=2)
    """Users compared, at most; of more, a fixed sample drawn with `seed`."""
    seed: int = Field(0, ge=0)
    """Of the sample and the resamples: the same for every model."""
    ks: tuple[PositiveInt, ...] = (1, 5, 10)


class ReID(Evaluator):
    """MRR, top-k accuracy and mean average precision of finding the own older pieces; ROC-AUC and equal error rate of telling
    own pairs from all others. Expected values under ties; the cosine with a zero embedding is 0.

    The area is a mean over users, each with his own pairs against all others. The equal error rate is none: its interval
    resamples users' own pairs alone, the pairs of different users stand still."""

    name = "reid"
    needs = Can.EMBED_USER
    hides = frozenset({"user"})
    judges = frozenset()
    Config = ReIDConfig
    headline = ("mrr", "top@1", "top@10", "roc_auc", "eer")
    baselines = (Ref(name="bag_of_items"), Ref(name="tf_idf"))

    def refuses(self, encoder: Encoder, data: Data) -> list[str]:
        """It needs an encoder that reads nothing of the user but his events, two users with pieces, and times for a gap."""
        config = self.config
        if read := sorted(name for name in encoder.reads if name.startswith("profile.")):
            return [f"asks who a user is; {encoder.name!r} reads {', '.join(read)}, the same in all pieces of a user"]
        if config.gap and "time" not in data.schema.fields:
            return [f"a gap of {config.gap} seconds needs times and the data set has none: leave reid.gap out"]
        found = 0
        for batch in data.pieces("test", 0, events=config.events, shots=config.shots, gap=config.gap):
            found += len(batch.history.user)
            if found > 1:
                return []
        return [
            f"{found} users have {1 + config.shots} pieces of {FEWEST} events before their last test question, and 2 are needed"
            " to tell one from another"
        ]

    @torch.no_grad()
    def evaluate(self, encoder: Encoder, data: Data, split: Split) -> Iterable[Metric]:
        """Every metric, of the newest pieces against the older ones."""
        users, pieces, total = self._embed(encoder, data, split)
        told = self._protocol(data, len(users), total)
        values = np.full((len(users), 3 + len(self.config.ks)), np.nan)  # [U, M]
        own = np.zeros((len(users), self.config.shots), np.int64)
        others = np.zeros(2 * GRID + 1, np.int64)
        if len(users) > 1:
            ranks, own, others = self._compare(pieces)
            values = self._values(ranks, own, others)
        names = [*(f"top@{k}" for k in self.config.ks), "mrr", "map", "roc_auc"]
        low, high = statistics.intervals(values, self.config.seed)
        for column, name in enumerate(names):
            mine = np.ascontiguousarray(values[:, column])
            value = float(mine.mean()) if len(mine) else float("nan")
            bounds = value, float(low[column]), float(high[column])
            yield Metric(TASK, name, _define(name, told), *bounds, n=len(users), users=users, values=mine)
        measure = verification.equal_error(own, others)
        seed = self.config.seed
        yield Metric.measured(TASK, "eer", _define("eer", told), users, measure, better="lower", seed=seed)

    def _embed(self, encoder: Encoder, data: Data, split: Split) -> tuple[np.ndarray, list[Matrix], int]:
        """(users [U] ascending, their pieces from the newest on [U, D] each, of how many users they are a sample)."""
        config = self.config
        kept, pieces, total = np.zeros(0, np.int64), [], 0
        for back in range(1 + config.shots):
            stream = data.pieces(split, back, events=config.events, shots=config.shots, gap=config.gap)
            users, found = Embedder(encoder, data.trained)(stream)
            order = np.argsort(users)
            if back == 0:
                total = len(users)
                kept = np.arange(total)
                if total > config.gallery:
                    kept = np.sort(np.random.default_rng(config.seed).choice(total, config.gallery, replace=False))
            pieces.append(verification.unit(found[order[kept]]))
        return users[order[kept]], pieces, total

    def _compare(self, pieces: list[Matrix]) -> tuple[Ranks, np.ndarray, np.ndarray]:
        """Of pieces [U, D]: where the own ones stand; their levels [U, S]; and how many pairs of others stand at each."""
        count, shots = pieces[0].shape[0], len(pieces) - 1
        others = np.zeros(2 * GRID + 1, np.int64)
        own, parts = [], []
        for start, found in verification.levels(pieces[0], pieces[1:]):  # [B, S U]
            mine = start + np.arange(len(found))[:, None] + count * np.arange(shots)  # [B, S]
            own.append(np.take_along_axis(found, mine, 1).astype(np.int64) + GRID)
            others += np.bincount(found.reshape(-1).astype(np.int64) + GRID, minlength=len(others))
            scores = torch.from_numpy(found.astype(np.float32))
            columns = torch.from_numpy(mine)
            tally = Tally(columns + FIRST, scores.gather(1, columns))
            tally.add(scores.scatter_(1, columns, torch.nan))
            parts.append(tally.ranks())
        levels = np.concatenate(own)
        return Ranks.join(parts), levels, others - np.bincount(levels.reshape(-1), minlength=len(others))

    def _values(self, ranks: Ranks, own: np.ndarray, others: np.ndarray) -> np.ndarray:
        """[U, M]: top-k accuracies, MRR, average precision over the whole gallery, area under the curve."""
        ks, whole = self.config.ks, len(own) * own.shape[1]
        table = metrics.measure(ranks, ks)
        precision = metrics.average_precision(ranks, whole)
        area = verification.auc(own, others).mean(1)
        return np.stack([*(table[f"hr@{k}"] for k in ks), table["mrr"], precision, area], 1)

    def _protocol(self, data: Data, users: int, total: int) -> dict[str, str]:
        """What all metrics share."""
        config, fields = self.config, data.schema.fields
        apart = [f"gap>{config.gap}s"] if "time" in fields else ["earlier"]
        return {
            "score": f"cosine({1 / GRID:.0e},zero=0)",
            "query": "newest",
            "gallery": f"{users} users" if users == total else f"sample({users} of {total} users,seed={config.seed})",
            "shots": str(config.shots),
            "events": f"{FEWEST}..{config.events}",
            "older": "+".join([*apart, *(["other-session"] if "session" in fields else [])]),
            "short": "skipped",
            "ties": "expected",
            "relevant": str(config.shots),
        }


FACTS: Mapping[str, Mapping[str, str]] = {
    "top": {"hit": "any"},
    "mrr": {"rank": "first"},
    "map": {"over": "relevant"},
    "roc_auc": {"pairs": "all", "mean": "users"},
    "eer": {"pairs": "all", "roc": "linear", "interval": "own-pairs"},
}
"""What is settled by the metric itself; the protocol's facts follow it in a definition."""


def _define(name: str, told: Mapping[str, str]) -> str:
    """`top@1[hit=any,score=...]`: what the metric means, canonically."""
    own = FACTS[name.partition("@")[0]]
    ranked = "mean" not in own and "roc" not in own
    kept = {key: value for key, value in told.items() if ranked or key != "relevant"}
    return f"{name}[{','.join(f'{key}={value}' for key, value in {**own, **kept}.items())}]"


@hookimpl
def userec_evaluators() -> Iterable[type[Evaluator]]:
    return [ReID]
