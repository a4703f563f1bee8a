"""The embedded samples: one seeded generator of made-up users behind every `NAME@sample`.

The world it draws, in order:

- *Items* lie in clusters; inside a cluster their popularity follows Zipf's law.
- *Tastes*: a user mixes a few clusters (a sparse Dirichlet draw), one mixture when young and another when old; taste drifts
  from the first to the second along the history.
- *Order*: the items of a cluster come in series of ten or so. An item's successors are those behind it in its series, the
  nearest first, and now and then any other item. With probability `follow` the next item is a successor of a recent item: of
  the last, or less probably of one of the three before it (`LAGS`): a chain of fourth order.
- *Return*: with probability `again` a user comes back to an item of the past (never, where `again` is 0: then no user meets
  an item twice, as in MovieLens).
- Else the next item is drawn from the taste of the moment.
- *Profile*: a class is the largest of linear functions of the mean taste plus noise, so that it can be told from behaviour,
  but not surely.

No model's form is built in and no real row went into it, but the strengths were chosen by trying: histories are long enough and
order strong enough that a chain of first order beats popularity and a model that attends to several events beats the chain. So
the samples show that a model works, never which of two is better. The same seed gives the same bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CHANCES = np.array([0.4, 0.25, 0.15, 0.12, 0.08])
"""How probable each successor of an item is."""

LAGS = np.array([0.3, 0.26, 0.24, 0.2])
"""How probable it is that the last item leads, the one before it, and so on."""


GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""The genres of MovieLens."""

OCCUPATIONS = ("administrator", "artist", "educator", "engineer", "librarian", "programmer", "student", "writer", "other")
"""Some of the occupations of MovieLens-100K."""

YEAR = 365 * 86_400
"""Seconds."""


@dataclass(frozen=True)
class World:
    """Made-up histories in CSR order. Users and items are numbered from 0."""

    user: Ints  # [E], ascending
    item: Ints  # [E]
    progress: Floats  # [E], 0 at a user's first event, 1 at the last
    cluster: Ints  # [I]
    popularity: Floats  # [I], sums to 1 in each cluster
    taste: Floats  # [U, K], the mean over the history
    late: Floats  # [U, K], the taste at its end

    @property
    def users(self) -> int:
        """How many."""
        return len(self.taste)

    @property
    def items(self) -> int:
        """How many."""
        return len(self.cluster)


def world(
    rng: np.random.Generator,
    *,
    users: int,
    items: int,
    clusters: int,
    length: tuple[int, int],
    follow: float = 0.4,
    again: float = 0.0,
    breadth: float = 0.06,
    zipf: float = 1.2,
) -> World:
    """Draws a world; histories have `length[0]`..`length[1]` events, more of them short than long.

    `breadth` is the Dirichlet parameter of taste (small = few clusters a user), `zipf` the exponent of popularity."""
    cluster = rng.permutation(np.arange(items) % clusters)
    popularity = _popularity(cluster, clusters, zipf)
    early, late = rng.dirichlet(np.full(clusters, breadth), size=(2, users))
    low, high = length
    lengths = low + np.floor((high - low + 1) * rng.beta(1.0, 1.4, users)).astype(np.int64)
    history = np.full((users, high), -1, dtype=np.int64)  # [U, T], -1 = nothing
    seen = np.zeros((users, items), dtype=bool)
    rows = np.arange(users)
    by_cluster = [np.flatnonzero(cluster == k) for k in range(clusters)]
    within = np.stack([np.cumsum(popularity[members])[: items // clusters] for members in by_cluster])  # [K, I/K]
    members = np.stack([found[: items // clusters] for found in by_cluster])  # [K, I/K]
    within /= within[:, -1:]
    successors = _successors(rng, members, items)  # [I, S]
    chances, lags = np.cumsum(CHANCES), np.cumsum(LAGS)
    for t in range(high):
        share = np.clip(t / np.maximum(lengths - 1, 1), 0, 1)[:, None]
        tastes = np.cumsum((1 - share) * early + share * late, axis=1)  # [U, K]
        open_ = lengths > t
        mode = rng.random(users)
        for attempt in range(1 if again else 12):
            k = _draw(rng, tastes)
            drawn = members[k, _draw(rng, within[k])]  # [U]
            if t and attempt < 6:  # a history that met all successors falls back on taste
                back = 1 + np.searchsorted(lags, rng.random(users) * lags[-1])
                leader = history[rows, np.maximum(t - back, 0)]
                successor = successors[leader, np.searchsorted(chances, rng.random(users) * chances[-1])]
                drawn = np.where((mode < follow) & (leader >= 0), successor, drawn)
            if t and again:
                past = history[rows, (rng.random(users) * t).astype(np.int64)]
                drawn = np.where(mode >= 1 - again, past, drawn)
            fresh = open_ & (history[:, t] < 0) & (bool(again) | ~seen[rows, drawn])
            history[fresh, t] = drawn[fresh]
        seen[rows[history[:, t] >= 0], history[history[:, t] >= 0, t]] = True
    user, column = np.nonzero(history >= 0)
    return World(
        user, history[user, column], column / np.maximum(lengths[user] - 1, 1), cluster, popularity, (early + late) / 2, late
    )


@dataclass(frozen=True)
class Films:
    """A world dressed as MovieLens: ratings in no order but that of the films, as GroupLens prints them, users and films."""

    user: Ints  # [E]
    item: Ints  # [E]
    rating: Ints  # [E], 1..5
    time: Ints  # [E], seconds
    users: Ints  # [U], from 1
    gender: list[str]
    age: list[int]
    occupation: list[object]
    zip_code: list[str]
    items: Ints  # [I], from 1
    title: list[str]
    genres: list[list[str]]


def films(rng: np.random.Generator, ages: list[int], occupations: list[object]) -> Films:
    """1,000 users who rate 20 to 100 of 500 films in one year; a user is active for some weeks or months of it, in sittings.

    About a fifth of neighbouring ratings share their second. A rating is high where the film's cluster is to the user's taste."""
    drawn = world(rng, users=1000, items=500, clusters=25, length=(20, 100), follow=0.6, zipf=1.0)
    user, item = drawn.user, drawn.item
    name = 1 + rng.permutation(drawn.items)
    match = np.sqrt(drawn.taste[user, drawn.cluster[item]])
    quality, mildness = rng.normal(scale=0.5, size=drawn.items), rng.normal(scale=0.4, size=drawn.users)
    score = 3.0 + 1.2 * match + quality[item] + mildness[user] + rng.normal(scale=0.7, size=len(user))
    time = 1_000_000_000 + _times(rng, drawn)
    main = rng.integers(len(GENRES), size=drawn.cluster.max() + 1)[drawn.cluster]  # [I]
    second = np.where(rng.random(drawn.items) < 0.5, rng.integers(len(GENRES), size=drawn.items), main)
    year = rng.integers(1950, 2001, size=drawn.items)
    by_name = np.argsort(name)
    count = len(ages), len(occupations)
    brackets = np.sort(np.array(ages))[
        np.minimum(classes(rng, drawn.taste, 6) * count[0] // 6 + rng.integers(-(-count[0] // 6), size=drawn.users), count[0] - 1)
    ]
    jobs = (classes(rng, drawn.taste, 7) * count[1] // 7 + rng.integers(-(-count[1] // 7), size=drawn.users)) % count[1]
    order = np.lexsort((name[item], user))  # within a user by film, so that only the time tells the order
    order = order[np.argsort(user[order], kind="stable")]
    return Films(
        user=(1 + user)[order],
        item=name[item][order],
        rating=np.clip(np.rint(score), 1, 5).astype(np.int64)[order],
        time=time[order],
        users=1 + np.arange(drawn.users),
        gender=["FM"[k] for k in classes(rng, drawn.taste, 2)],
        age=brackets.tolist(),
        occupation=[occupations[k] for k in jobs],
        zip_code=[f"{k:05d}" for k in rng.integers(100_000, size=drawn.users)],
        items=1 + np.arange(drawn.items),
        title=[f"Film {n + 1} ({year[k]})" for n, k in enumerate(by_name)],
        genres=[sorted({GENRES[main[k]], GENRES[second[k]]}) for k in by_name],
    )


def _times(rng: np.random.Generator, drawn: World) -> Ints:
    """Seconds since the year began, [E], growing along a history: short steps in a sitting, days between sittings."""
    step = np.where(
        rng.random(len(drawn.user)) < 0.25, rng.exponential(14 * 86_400, len(drawn.user)), rng.exponential(40, len(drawn.user))
    )
    step = np.where(rng.random(len(step)) < 0.2, 0, np.ceil(step))
    total = np.cumsum(step)
    starts = np.searchsorted(drawn.user, np.arange(drawn.users))
    since = total - total[starts][drawn.user]  # [E]
    span = since[np.r_[starts[1:], len(since)] - 1]  # [U]
    begin = rng.random(drawn.users) * np.maximum(YEAR - span, 0)
    return (begin[drawn.user] + since * np.minimum(1.0, YEAR / np.maximum(span, 1))[drawn.user]).astype(np.int64)


@dataclass(frozen=True)
class Shop:
    """A world dressed as Taobao: what each user did, by user and time."""

    user: Ints  # [E]
    item: Ints  # [E]
    action: Ints  # [E], 0 page view, 1 cart, 2 favourite, 3 purchase
    time: Ints  # [E], seconds


def shop(rng: np.random.Generator, drawn: World, opens: int, closes: int) -> Shop:
    """Every event of the world is a page view between `opens` and `closes` (seconds), in sittings hours apart; some lead to a
    cart or a favourite within minutes, or to a purchase, mostly within hours.

    A purchase is the likelier the more the item's cluster is to the user's taste, and the better the item: which its popularity
    does not tell. So the history tells buyers from others, one number of it not all that can be told."""
    user, item = drawn.user, drawn.item
    quality = rng.normal(size=drawn.items)
    wanted = 10 * np.sqrt(drawn.taste[user, drawn.cluster[item]]) + quality[item] - 8  # [E], log-odds
    view = opens + _sittings(rng, drawn, closes - opens)
    shares = np.full(len(user), 0.06), np.full(len(user), 0.03), 1 / (1 + np.exp(-wanted))
    rows, action, time = [np.arange(len(user))], [np.zeros(len(user), dtype=np.int64)], [view]
    for kind, (share, delay) in enumerate(zip(shares, (120.0, 60.0, 4 * 3600.0), strict=True), start=1):
        done = np.flatnonzero(rng.random(len(user)) < share)
        rows.append(done)
        action.append(np.full(len(done), kind))
        time.append(view[done] + 1 + rng.exponential(delay, len(done)).astype(np.int64))
    row, did, when = np.concatenate(rows), np.concatenate(action), np.concatenate(time)
    order = np.lexsort((row, when, user[row]))
    order = order[when[order] < closes]
    return Shop(user[row[order]], item[row[order]], did[order], when[order])


def _sittings(rng: np.random.Generator, drawn: World, span: int) -> Ints:
    """Seconds since the start, [E], growing along a history: half a minute a page, hours between sittings, all within `span`."""
    pause = rng.random(len(drawn.user)) < 0.15
    step = 1 + np.where(pause, rng.exponential(16 * 3600, len(pause)), rng.exponential(30, len(pause)))
    total = np.cumsum(step)
    starts = np.searchsorted(drawn.user, np.arange(drawn.users))
    since = total - total[starts][drawn.user]  # [E]
    length = since[np.r_[starts[1:], len(since)] - 1]  # [U]
    squeeze = np.minimum(1.0, (span - 1) / np.maximum(length, 1))
    begin = rng.random(drawn.users) * np.maximum(span - 1 - length, 0)
    return (begin[drawn.user] + since * squeeze[drawn.user]).astype(np.int64)


def classes(rng: np.random.Generator, taste: Floats, count: int, *, signal: float = 12.0) -> Ints:
    """A class 0..count-1 for each user, [U]: the largest of `count` linear functions of taste, each with Gumbel noise.

    `signal` is the spread of the linear functions, in units of that noise's scale."""
    slopes = rng.normal(size=(taste.shape[1], count)) * signal
    tilt = rng.normal(size=count) * 0.5
    return (taste @ slopes - (taste @ slopes).mean(axis=0) + tilt + rng.gumbel(size=(len(taste), count))).argmax(axis=1)


def pick(rng: np.random.Generator, taste: Floats, items: int, most: int) -> list[Ints]:
    """Items of a second domain that each user likes, 1..`most` different ones: Zipf inside the clusters of `taste` [U, K]."""
    cluster = rng.permutation(np.arange(items) % taste.shape[1])
    weight = _popularity(cluster, taste.shape[1], 1.0) * (taste[:, cluster] + 1e-3)  # [U, N]
    order = np.argsort(np.log(weight) + rng.gumbel(size=weight.shape), axis=1)[:, ::-1]
    return [row[:n] for row, n in zip(order, rng.integers(1, most + 1, size=len(taste)), strict=True)]


def _popularity(cluster: Ints, clusters: int, zipf: float) -> Floats:
    """Zipf weights, 1 in sum in every cluster; the first item of a cluster is its most popular."""
    weight = np.zeros(len(cluster))
    for k in range(clusters):
        members = np.flatnonzero(cluster == k)
        weight[members] = (1.0 + np.arange(len(members))) ** -zipf
        weight[members] /= weight[members].sum()
    return weight


def _successors(rng: np.random.Generator, members: Ints, items: int, length: int = 10, stray: float = 0.1) -> Ints:
    """The successors of each item, likeliest first, [I, S]: the next in its series, which closes to a ring; a share of `stray`
    is replaced by any item. Each cluster's `members` [K, N] are cut into series of about `length`, in random order."""
    successors = rng.integers(items, size=(items, len(CHANCES)))
    keep = rng.random(successors.shape) >= stray
    for cluster in members:
        for series in np.array_split(rng.permutation(cluster), max(len(cluster) // length, 1)):
            ring = np.stack([np.roll(series, -step) for step in range(1, len(CHANCES) + 1)], axis=1)  # [n, S]
            successors[series] = np.where(keep[series], ring, successors[series])
    return successors


def _draw(rng: np.random.Generator, cumulative: Floats) -> Ints:
    """One index a row, by the cumulative weights [U, N]."""
    return (cumulative < rng.random((len(cumulative), 1)) * cumulative[:, -1:]).sum(axis=1)
