"""The events whose codes differ from a query's in the fewest bits (ETA, Chen et al. 2021, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from userec.errors import UserError
from userec.kernel.contract import Case, Cost
from userec.kernel.reference.simhash_pack import BITS


def hamming_topk(queries: Tensor, codes: Tensor, mask: Tensor | None = None, *, count: int) -> tuple[Tensor, Tensor]:
    """queries [B, C, W], codes [B, L, W] int64, mask [B, L] or [B, C, L] bool, True = allowed (None: all) -> (index, distance),
    [B, C, count] int64 both: the `count` allowed events of least Hamming distance, the nearest first.

    Of events equally far the later comes first (histories are chronological, so: the newer), which decides often: 64 bits have
    but 65 distances. Where fewer are allowed, index is -1 and distance 64 W + 1, farther than any event can be."""
    check_codes(queries, codes, mask, count)
    none = BITS * codes.shape[-1] + 1
    distance = bit_count(queries[:, :, None] ^ codes[:, None]).sum(-1)  # [B, C, L]
    if mask is not None:
        distance = distance.masked_fill(~(mask if mask.dim() == 3 else mask[:, None]), none)
    newest, order = torch.sort(distance.flip(-1), dim=-1, stable=True)
    length = codes.shape[1]
    missing = max(count - length, 0)
    distance = F.pad(newest[..., :count], (0, missing), value=none)
    index = F.pad(length - 1 - order[..., :count], (0, missing), value=-1)
    return index.masked_fill(distance == none, -1), distance


def bit_count(words: Tensor) -> Tensor:
    """How many of its 64 bits each int64 has set, the sign bit too: sums of 2, 4, then 8 bits side by side in the word."""
    pairs = words - ((words >> 1) & 0x5555555555555555)
    nibbles = (pairs & 0x3333333333333333) + ((pairs >> 2) & 0x3333333333333333)
    octets = (nibbles + (nibbles >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (octets * 0x0101010101010101) >> 56


def check_codes(queries: Tensor, codes: Tensor, mask: Tensor | None, count: int) -> None:
    """Raises UserError unless shapes and dtypes fit and `count` is at least 1."""
    if queries.dtype != torch.int64 or codes.dtype != torch.int64:
        raise UserError(
            f"hamming_topk: queries are {queries.dtype}, codes {codes.dtype}: both must be int64 words of simhash_pack"
        )
    users, words = len(codes), codes.shape[-1]
    if queries.dim() != 3 or codes.dim() != 3 or len(queries) != users or queries.shape[2] != words:
        raise UserError(
            f"hamming_topk: queries are {tuple(queries.shape)}, codes {tuple(codes.shape)}: give [B, C, W] and [B, L, W]"
        )
    fits = ((users, codes.shape[1]), (users, queries.shape[1], codes.shape[1]))
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) not in fits):
        raise UserError(f"hamming_topk: mask is {mask.dtype} {tuple(mask.shape)}: give bool {fits[0]} or {fits[1]}")
    if count < 1:
        raise UserError(f"hamming_topk: count is {count}: ask for 1 event or more")


def cost(arguments: Mapping[str, Any]) -> Cost:
    """Two operations a pair of words (differ, count); queries and codes read once, index and distance written."""
    queries, codes = arguments["queries"], arguments["codes"]
    pairs = queries.shape[1] * codes.numel()
    rows = queries.shape[0] * queries.shape[1]
    return Cost(2.0 * pairs, 8.0 * (queries.numel() + codes.numel() + 2 * rows * arguments["count"]))


def cases() -> Iterable[Case]:
    """Random words, few bits (many ties), both masks, fewer events than asked, nothing allowed, several words, no events."""
    for name, settings in {
        "words": {},
        "ties": {"bits": 3},
        "mask of events": {"mask": 2},
        "mask of pairs": {"mask": 3},
        "two words": {"words": 2, "mask": 2},
        "five words": {"words": 5, "mask": 3},
        "all asked": {"count": 33},
        "more than there are": {"count": 40, "mask": 2},
        "nothing allowed": {"mask": 2, "allowed": 0.0},
        "one": {"count": 1, "bits": 2},
        "long": {"length": 700, "bits": 10, "mask": 2, "count": 5},
        "longer than a block": {"users": 1, "length": 2**16 + 1, "bits": 20},
        "many users": {"users": 70, "length": 1000, "candidates": 1},
        "no event": {"length": 0},
        "no candidate": {"candidates": 0},
        "nobody": {"users": 0},
    }.items():
        yield Case(name, partial(_arguments, **settings), user=("queries", "codes", "mask"), out=("user", "user"))  # type: ignore[arg-type]


def _arguments(
    generator: Generator,
    users: int = 3,
    candidates: int = 4,
    length: int = 33,
    words: int = 1,
    bits: int = BITS,
    mask: int = 0,
    allowed: float = 0.5,
    count: int = 7,
) -> dict[str, Any]:
    def draw(*shape: int) -> Tensor:
        spread = torch.rand(*shape, words, BITS, generator=generator) < 0.5  # [.., W, 64]
        spread[..., : BITS - bits] = False  # the sign bit varies always
        return (spread * (1 << torch.arange(BITS))).sum(-1)

    shapes = {0: None, 2: (users, length), 3: (users, candidates, length)}
    shape = shapes[mask]
    return {
        "queries": draw(users, candidates),
        "codes": draw(users, length),
        "mask": None if shape is None else torch.rand(shape, generator=generator) < allowed,
        "count": count,
    }
