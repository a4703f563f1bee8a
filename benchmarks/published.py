"""What others published, what this project set itself, and why a goal was missed; read by `quality.py`. Facts only.

A row of ours is named as its result file is, without data set and seed: `gsasrec-movielens-1m-seed2.json` is `gsasrec`.
All values are of full ranking. "From memory" marks what was not read again in its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Published:
    """One value of somebody else's, for one of our rows."""

    model: str
    dataset: str
    values: str
    items: int | None
    """How many items were ranked; None = the source does not tell."""
    protocol: str
    source: str


@dataclass(frozen=True)
class Relative:
    """A goal set by another row, judged on the same questions: so many times its NDCG@10, means over the seeds."""

    model: str
    other: str
    dataset: str | None = None
    """None = wherever the model has a row."""
    times: float = 1.0
    users: str | None = None
    """`FROM-TO`: of those users alone, as `measure.py --users` kept them."""


BERT4REC_FILE: Final = "leave-one-out, items with five ratings or more (BERT4Rec's file)"
ALL: Final = "leave-one-out, all items, no validation part, unstable sort"
STABLE: Final = "leave-one-out, ties in the file's order"
SAME: Final = "leave-one-out, the same file"
LARGER: Final = "leave-one-out, BERT4Rec's larger file"
TIGER: Final = "S3-Rec's runs, quoted by TIGER; from memory"
ANTKLEN: Final = "antklen's repository"

_Row = tuple[str, float, float, int | None, str, str]


def _both(ndcg: float, hr: float) -> str:
    return f"NDCG@10 {ndcg:.4f}, HR@10 {hr:.4f}"


def _twenty(hr: float, mrr: float) -> str:
    return f"HR@20 {hr:.4f}, MRR@20 {mrr:.4f}"


_ONE_M: Final[tuple[_Row, ...]] = (
    ("sasrec", 0.1622, 0.2877, None, STABLE, "RecTools' HSTU tutorial"),
    ("sasrec", 0.1603, 0.2853, 3706, f"{ALL}; sampled softmax, 128 negatives", "Meta's repository"),
    ("sasrec", 0.1821, 0.3152, 3416, f"{BERT4REC_FILE}; cross-entropy over all items", ANTKLEN),
    ("sasrec", 0.1857, 0.3159, 3416, f"{BERT4REC_FILE}; cross-entropy over 3,000 shared negatives", ANTKLEN),
    ("sasrec", 0.1341, 0.2500, 3416, f"{BERT4REC_FILE}; binary cross-entropy, one negative", ANTKLEN),
    ("sasrec", 0.1259, 0.2392, 3416, f"{BERT4REC_FILE}; binary cross-entropy", "gSASRec-pytorch"),
    ("gsasrec", 0.1726, 0.3003, 3416, f"{BERT4REC_FILE}; 256 negatives, t = 0.75, width 128", "gSASRec-pytorch"),
    ("gru4rec", 0.1648, 0.2811, 3416, f"{BERT4REC_FILE}; cross-entropy over all items, width 64", "antklen, quoted by Meta"),
    ("bert4rec", 0.1537, 0.2843, 3416, BERT4REC_FILE, ANTKLEN),
    ("bert4rec", 0.1516, 0.2821, 3416, BERT4REC_FILE, "Petrov's reproduction"),
    ("hstu", 0.1880, 0.3226, None, STABLE, "RecTools' HSTU tutorial"),
    ("hstu", 0.1720, 0.3097, 3706, ALL, "Meta's repository"),
    ("hstu-untimed", 0.1718, 0.3023, None, f"{STABLE}; position bias only", "RecTools' HSTU tutorial"),
    ("hstu-large", 0.2164, 0.3642, None, STABLE, "RecTools' HSTU tutorial"),
    ("hstu-large", 0.1893, 0.3294, 3706, ALL, "Meta's repository"),
)
_BEAUTY: Final[tuple[_Row, ...]] = (
    ("sasrec", 0.0318, 0.0605, 12101, SAME, TIGER),
    ("sasrec", 0.0327, 0.0533, 54542, f"{LARGER}; cross-entropy over all items", f"{ANTKLEN}; its items from memory"),
    ("gru4rec", 0.0137, 0.0283, 12101, SAME, TIGER),
    ("bert4rec", 0.0170, 0.0347, 12101, SAME, TIGER),
    ("bert4rec", 0.0187, 0.0338, 54542, LARGER, f"{ANTKLEN}; its items from memory"),
    ("caser", 0.0176, 0.0347, 12101, SAME, TIGER),
)
_DIGINETICA: Final[tuple[_Row, ...]] = (
    ("gru4rec", 0.2945, 0.0833, 43097, "the same cut and test lines", "SR-GNN's run of GRU4Rec; from memory"),
)

PUBLISHED: Final = (
    *(
        Published(model, "movielens-1m", _both(ndcg, hr), items, protocol, source)
        for model, ndcg, hr, items, protocol, source in _ONE_M
    ),
    *(
        Published(model, "beauty", _both(ndcg, hr), items, protocol, source)
        for model, ndcg, hr, items, protocol, source in _BEAUTY
    ),
    *(
        Published(model, "diginetica", _twenty(hr, mrr), items, protocol, source)
        for model, hr, mrr, items, protocol, source in _DIGINETICA
    ),
)

GOALS: Final = {
    ("sasrec", "movielens-1m"): 0.176,
    ("gsasrec", "movielens-1m"): 0.168,
    ("gru4rec", "movielens-1m"): 0.160,
    ("bert4rec", "movielens-1m"): 0.150,
    ("nextitnet", "movielens-1m"): 0.14,
    ("hstu", "movielens-1m"): 0.180,
}
"""(row, data set): the test NDCG@10 that it must reach, mean over its seeds."""

INSTEAD: Final = (Relative("hstu", "sasrec", "movielens-1m", times=1.05, users="1-2999"),)
"""What may be reached in the place of a row's goal."""

OVER: Final = (
    Relative("context_tree", "markov"),
    Relative("hrnn", "gru4rec", "taobao"),
    Relative("hrnn", "gru4rec", "train"),  # amazon_grocery/train.csv.gz: reviews of one day are a session
)
"""What rows must reach of one another."""

BELOW: Final = {("rrn", "rating"): "rating_bias"}
"""(encoder, rating task): the baseline whose RMSE on test its own must stay below."""

SEEDS: Final[dict[tuple[str | None, str], int]] = {
    ("sasrec", "movielens-1m"): 3,
    ("gsasrec", "movielens-1m"): 3,
    ("gru4rec", "movielens-1m"): 3,
    (None, "movielens-100k"): 3,
}
"""(row or None = every row, data set): how many seeds its mean wants; elsewhere one will do."""

NEEDS_GPU: Final = {
    ("hstu-large", "movielens-1m"): "userec run --model hstu_large --dataset movielens-1m --split leave_last --seed 1",
}
"""{(row, data set): command} of what is too large to be trained to its end on a CPU: only its throughput is measured."""

NOTES: Final[dict[tuple[str, str], str]] = {
    ("hrnn", "train"): (
        "Unlike gru4rec it sees when a question is put: whether the day's reviews go on. One seed, the intervals overlap, and in"
        " validation gru4rec is ahead."
    ),
    ("hrnn", "taobao"): "61,304 items for 94,436 events: 71 % of the test's answers never stand in training.",
}
"""(row, data set): a sentence on why its goal is missed, or on anything else that a reader must know."""
