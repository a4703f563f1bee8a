from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from userec_transformer.gsasrec import GSASRec
from userec_transformer.sasrec import SASRec

from userec.builtin.next_item import NextItem
from userec.dataset.events import code
from userec.errors import UserError
from userec.registry import load
from userec.testing import open_session
from userec.testing.build import tiny_build
from userec.testing.tiny import ITEMS, TinyDataset, tiny_batch


def test_its_recipe_is_sasrec_with_the_price_of_the_paper() -> None:
    coded = code(TinyDataset(TinyDataset.Config(), Path()))
    session = open_session(load().plugins, coded, {"encoder": {"name": "gsasrec", "dim": 8, "window": 8}, "train": {"epochs": 1}})
    model = session.compose(session.run.experiment)
    asked = model.build.objective(model.experiment.objective).config
    assert (asked.price, asked.t, asked.negatives, asked.sampler, asked.shared) == ("gbce", 0.75, 256, "uniform", False)
    assert GSASRec.Config().dim == 128
    assert SASRec.recipe["objective"]["item"] == {"name": "next_item"}, "SASRec's own recipe stays"


def test_the_loss_is_equation_9() -> None:
    """Every position has negatives of its own; beta is 1 + t (k / (N - 1) - 1), as alpha (t (1 - 1/alpha) + 1/alpha)."""
    torch.manual_seed(0)
    build = tiny_build()
    encoder = GSASRec(GSASRec.Config(dim=8, window=8, dropout=0.0), build).eval()
    said = {**GSASRec.recipe["objective"]["item"], "negatives": 5}
    said.pop("name")
    ask = NextItem(NextItem.Config(**said), build)
    ask.begin_task(encoder, ("next",), "train")
    batch = ask.prepare(tiny_batch(length=9, shortest=3), torch.Generator().manual_seed(0))
    tokens, ids = encoder.encode(batch.history).tokens, batch.targets.query.ids
    beta = 1 + 0.75 * (5 / (ITEMS - 1) - 1)
    losses = []
    for b, q in (batch.targets.weight > 0).nonzero().tolist():
        answer, *drawn = ids[b, q].tolist()
        wrong = [encoder.items.weight[i] @ tokens[b, q] for i in drawn if i != answer]
        positive = beta * F.logsigmoid(encoder.items.weight[answer] @ tokens[b, q])
        losses.append(-(positive + sum(F.logsigmoid(-s) for s in wrong)) / (len(wrong) + 1))
    assert math.isclose(ask.loss(encoder, batch).loss.item(), torch.stack(losses).mean().item(), rel_tol=1e-5)


def test_errors_name_it() -> None:
    with pytest.raises(UserError, match=r"encoder 'gsasrec': encoder\.dim 128 is not a multiple of encoder\.heads 3"):
        GSASRec(GSASRec.Config(heads=3), tiny_build())
