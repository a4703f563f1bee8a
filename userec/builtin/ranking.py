"""Evaluator `ranking`: where do the items that a user really chose stand among all items he had not chosen yet?

The whole catalogue is ranked unless a sampled candidate set is asked for; then every name carries `~`, because sampled
metrics need not even preserve which of two models is better (Krichene & Rendle, KDD 2020)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from userec.batch import Batch
from userec.config import Config, Ref
from userec.encoder.contract import Encoder
from userec.evaluator import metrics, statistics
from userec.evaluator.contract import Data, Evaluator, Metric, Split
from userec.evaluator.ranks import Ranks, Tally, Tops
from userec.evaluator.scorer import Scorer, draw, users_of
from userec.markers import hookimpl
from userec.schema import FIRST

REPEATS = 0.01
"""Share of training events that repeat an item of their user, from which on seen items are ranked too."""

FEWEST = 100
"""A sample of users is not cut below this, however slow the encoder: the interval would say nothing."""


class RankingConfig(Config):
    """Settings of `ranking`."""

    ks: tuple[PositiveInt, ...] = (1, 5, 10, 20)
    beyond: tuple[PositiveInt, ...] = (10,)
    """List lengths of coverage, Gini and novelty; empty = none."""
    filter_seen: bool | None = None
    """Items of the user's history are not ranked, except his targets. None = where people do not return to items: fewer than
    one in a hundred training events repeats an item. Dropped where people do return, their returns would be given away."""
    candidates: PositiveInt | None = None
    """Uniform candidates a user beside his targets, drawn once with `seed`; None = the whole catalogue."""
    seed: int = Field(0, ge=0)
    """Of the candidates and the resamples: the same for every model."""
    chunk: PositiveInt | None = None
    """Items scored at once; None = what the memory budget allows."""
    minutes: float = Field(10.0, gt=0)
    """Longest time for an encoder that scores items one by one; beyond it a sample of users is ranked."""


@dataclass(frozen=True)
class Found:
    """What the batches gave, in their order."""

    users: list[np.ndarray] = field(default_factory=list)  # [B] each
    ranks: list[Ranks] = field(default_factory=list)
    lists: list[dict[int, np.ndarray]] = field(default_factory=list)  # {k: [B, <=k]} each; 0 = none


class Ranking(Evaluator):
    """Hit rate, recall, precision, NDCG, MRR and MAP, expected under ties; coverage, Gini and novelty of the top lists.

    A target of id 1 cannot be ranked: it counts as missed (`unknown=missed`). An item that occurs in held-out events alone is
    not of id 1: it has an id of its own and is ranked by whatever its untrained row scores."""

    name = "ranking"
    Config = RankingConfig
    headline = ("hr@10", "ndcg@10", "mrr", "map@10", "coverage@10")
    baselines = (Ref(name="popularity"),)

    def refuses(self, encoder: Encoder, data: Data) -> list[str]:
        """It needs an item task with a trained head."""
        return [] if _tasks(data) else ["no item task is trained: there is nothing to rank"]

    def evaluate(self, encoder: Encoder, data: Data, split: Split) -> Iterable[Metric]:
        """Every metric of every trained item task."""
        for task in _tasks(data):
            yield from self._judge(encoder, data, split, task)

    @torch.no_grad()
    def _judge(self, encoder: Encoder, data: Data, split: Split, task: str) -> list[Metric]:
        size = data.schema.spaces[data.schema.task(task).space]
        scorer = Scorer(encoder, task, split, size, self.config.chunk)
        kept, total = self._affordable(scorer, data, split) if scorer.walks and not self.config.candidates else (None, 0)
        found = Found()
        for batch in scorer.portions(data.batches(split, task, users=kept)):
            scorer.read(batch)
            ids = scorer.targets.query.ids
            if ids is None:
                raise ValueError("evaluation targets name the relevant ids")
            seen = self._dropped(scorer, data)
            if self.config.candidates:
                found.ranks.append(self._rank_sampled(scorer, ids[:, 0], seen))
            else:
                ranks, lists = self._rank(scorer, ids[:, 0], seen)
                found.ranks.append(ranks)
                found.lists.append(lists)
            found.users.append(users_of(scorer.batch))
        told = self._protocol(data, task, size, "users" if kept is None else f"sample({kept} of {total})")
        return [*self._accuracy(found, task, told), *self._beyond(found, data, task, size, told)]

    def _drops(self, data: Data, task: str) -> bool:
        """Whether seen items are dropped; of another space they are no candidates at all."""
        if data.schema.task(task).space != "item":
            return False
        return data.repeats < REPEATS if self.config.filter_seen is None else self.config.filter_seen

    def _protocol(self, data: Data, task: str, size: int, users: str) -> dict[str, str]:
        config, items = self.config, size - FIRST
        return {
            "ties": "expected",
            "seen": "dropped" if self._drops(data, task) else "kept",
            "unknown": "missed",
            "empty": "skipped",
            "catalogue": f"uniform({config.candidates} of {items},seed={config.seed})" if config.candidates else f"full({items})",
            "mean": "users",
            **({} if users == "users" else {"users": users}),
        }

    def _dropped(self, scorer: Scorer, data: Data) -> tuple[Tensor, Tensor]:
        """(row [N], id [N]) of real seen items, which are not ranked; a target among them is judged all the same."""
        if not self._drops(data, scorer.task):
            return (torch.zeros(0, dtype=torch.int64, device=scorer.device),) * 2
        row, seen = (x.to(scorer.device) for x in data.seen(scorer.batch))
        real = seen >= FIRST
        return (row, seen) if real.all() else (row[real], seen[real])

    def _rank(self, scorer: Scorer, ids: Tensor, seen: tuple[Tensor, Tensor]) -> tuple[Ranks, dict[int, np.ndarray]]:
        """One walk over the catalogue: counts for every target [B, P], and the top lists."""
        known = ids >= FIRST
        targets = known.nonzero(as_tuple=True)[0], ids[known]
        tops = {k: Tops(k) for k in self.config.beyond}
        tally = None if scorer.whole else Tally(ids, scorer.of(ids))
        for first, scores in scorer.chunks():  # [B, C]
            if tally is None:  # targets and rivals out of one product: what is equal is equal to the last bit
                tally = Tally(ids, scores.gather(1, (ids - first).clamp(min=0)))
            dropped, relevant = (_inside(cells, first, scores.shape[1], scorer.whole) for cells in (seen, targets))
            if tops:
                own = scores[relevant]
                scores[dropped] = -torch.inf
                scores[relevant] = own
                for top in tops.values():
                    top.add(scores, first)
            scores[dropped] = torch.nan
            scores[relevant] = torch.nan
            tally.add(scores)
        if tally is None:
            raise ValueError("an empty catalogue cannot be ranked")
        return tally.ranks(), {k: top.lists().cpu().numpy() for k, top in tops.items()}

    def _rank_sampled(self, scorer: Scorer, ids: Tensor, seen: tuple[Tensor, Tensor]) -> Ranks:
        known = ids >= FIRST
        row = torch.cat([seen[0], known.nonzero(as_tuple=True)[0]]).cpu().numpy()
        barred = row, torch.cat([seen[1], ids[known]]).cpu().numpy()
        drawn = torch.from_numpy(draw(self.config.candidates, scorer.size, users_of(scorer.batch), barred, self.config.seed))
        drawn = drawn.to(ids.device)  # [B, m]
        scores = scorer.each(torch.cat([ids, drawn], 1))  # [B, P + m]
        tally = Tally(ids, scores[:, : ids.shape[1]])
        tally.add(scores[:, ids.shape[1] :].masked_fill(drawn < FIRST, torch.nan))
        return tally.ranks()

    def _affordable(self, scorer: Scorer, data: Data, split: Split) -> tuple[int | None, int]:
        """(users to rank, users in all): None = all, where the first two chunks promise an end within `minutes`."""
        probe, work, known = None, 0, set()
        for batch in data.batches(split, scorer.task):  # no forward pass: only how much there is to do
            probe = batch if probe is None or _work(batch) > _work(probe) else probe  # the heaviest: short ones are all overhead
            work += _work(batch)
            known.update(users_of(batch).tolist())
        if probe is None:
            return None, 0
        started = time.perf_counter()
        scorer.read(probe)
        encoded, columns = time.perf_counter(), 0
        for _, (_, scores) in zip(range(2), scorer.chunks(), strict=False):
            columns += scores.shape[1]
        one = encoded - started + (time.perf_counter() - encoded) * (scorer.size - FIRST) / columns  # seconds of the probe
        share = self.config.minutes * 60 / (one * work / _work(probe))
        kept = max(round_down(int(len(known) * min(share, 1.0))), FEWEST)
        return (None if share >= 1 or kept >= len(known) else kept), len(known)

    def _accuracy(self, found: Found, task: str, told: Mapping[str, str]) -> list[Metric]:
        ranks = Ranks.join(found.ranks)
        asked = ranks.targets > 0
        if not asked.any():
            return []
        table = metrics.measure(ranks, self.config.ks)  # {metric: [N]}
        users, values = statistics.by_user(np.concatenate(found.users)[asked], np.stack(list(table.values()), 1)[asked])
        return self._rows(task, list(table), users, values, told)

    def _beyond(self, found: Found, data: Data, task: str, size: int, told: Mapping[str, str]) -> Iterator[Metric]:
        """Coverage and Gini of all lists together; novelty as a mean over users."""
        users = np.concatenate([np.zeros(0, np.int64), *found.users])
        told = {**told, "ties": "lower-id"}
        pooled = {key: value for key, value in told.items() if key != "mean"}
        for k in self.config.beyond if found.lists else ():
            lists = [part[k] for part in found.lists]
            counts = np.bincount(np.concatenate([part.reshape(-1) for part in lists]), minlength=size)[FIRST:]
            n = len(np.unique(users))
            name = f"coverage@{k}"
            yield Metric(task, name, metrics.define(name, pooled), metrics.coverage(counts), n=n)
            name = f"gini@{k}"
            yield Metric(task, name, metrics.define(name, pooled), metrics.gini(counts), n=n, better="lower")
            if data.schema.task(task).space == "item":  # the space that training counts are of
                bits = np.concatenate([np.zeros(FIRST), metrics.information(data.popularity[FIRST:].double().cpu().numpy())])
                filled = np.concatenate([(part >= FIRST).sum(1) for part in lists])
                means = np.concatenate([bits[part].sum(1) for part in lists]) / np.maximum(filled, 1)
                owners, values = statistics.by_user(users[filled > 0], means[filled > 0, None])
                yield from self._rows(task, [f"novelty@{k}"], owners, values, told)

    def _rows(self, task: str, names: list[str], users: np.ndarray, values: np.ndarray, told: Mapping[str, str]) -> list[Metric]:
        """One metric a column of `values` [U, M], with its interval over users."""
        low, high = statistics.intervals(values, self.config.seed)
        rows = []
        for column, name in enumerate(names):
            shown = f"{name}~uniform{self.config.candidates}" if self.config.candidates else name
            own = np.ascontiguousarray(values[:, column])
            bounds = float(own.mean()), float(low[column]), float(high[column])
            rows.append(Metric(task, shown, metrics.define(shown, told), *bounds, n=len(users), users=users, values=own))
        return rows


def _tasks(data: Data) -> list[str]:
    return [task.name for task in data.schema.all_tasks if task.kind == "item" and task.name in data.trained]


def _work(batch: Batch) -> int:
    """Positions of the padded batch, and one a row for what does not depend on length."""
    return batch.history.mask.numel() + len(batch.history.mask)


def _inside(cells: tuple[Tensor, Tensor], first: int, width: int, whole: bool) -> tuple[Tensor, Tensor]:
    """(row [N], id [N]) -> (row, column) of those in the chunk of `width` ids from `first`; all are where it is `whole`."""
    row, ids = cells
    if whole:
        return row, ids - first
    here = (ids >= first) & (ids < first + width)
    return row[here], ids[here] - first


def round_down(n: int) -> int:
    """The next 1, 2 or 5 times a power of ten at or below `n`: a sample size that does not follow every jitter of the clock."""
    if n < 1:
        return 0
    power = 10 ** (len(str(n)) - 1)
    return max(step for step in (power, 2 * power, 5 * power) if step <= n)


@hookimpl
def userec_evaluators() -> Iterable[type[Evaluator]]:
    return [Ranking]
