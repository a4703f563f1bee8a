from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from userec_lifelong.attention import TargetAttention, union_of_heads


def naive_union(lists: list[list[int]], keep: int) -> set[int]:
    """Walk the heads' lists in turn until `keep` unique events are found."""
    found: list[int] = []
    for turn in range(len(lists[0])):
        for ranked in lists:
            if len(found) < keep and ranked[turn] not in found:
                found.append(ranked[turn])
    return set(found)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.data())
def test_the_union_is_the_naive_walk_through_the_lists(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 9))
    ranks = data.draw(st.integers(1, length))
    keep = data.draw(st.integers(1, length))
    heads = data.draw(st.integers(1, 4))
    lists = [[data.draw(st.permutations(range(length)))[:ranks] for _ in range(heads)] for _ in range(2)]
    kept = union_of_heads(torch.tensor(lists), keep, length)
    for row, one in enumerate(lists):
        assert set(kept[row].nonzero().flatten().tolist()) == naive_union(one, keep)


def attention(keep: int | None = 4) -> TargetAttention:
    torch.manual_seed(0)
    return TargetAttention(inherent=8, features=2, cross=3, dim=12, heads=3, keep=keep)


def inputs(rows: int = 2, asked: int = 2, candidates: int = 3, length: int = 9) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    allowed = torch.arange(length) < torch.tensor([[length, 6], [2, 0]])[:rows, :asked, None]
    inherent, cross = torch.randn(rows, length, 8), torch.randn(rows, asked, length, 2, 3)
    return inherent, cross, torch.randn(rows, asked, candidates, 8), allowed


def test_the_two_stages_are_the_paper_s_formulas() -> None:
    """alpha, top K of its union, softmax of the same alpha, K W^v, W^o: one (row, question, candidate) at a time, in loops."""
    module = attention()
    inherent, cross, target, allowed = inputs()
    keys, projected = module.project(inherent)
    out = module(keys, module.bias(cross), module.values(projected, cross), target, allowed)
    for b, q, c in ((b, q, c) for b in range(2) for q in range(2) for c in range(3)):
        events = allowed[b, q].nonzero().flatten().tolist()
        alphas, heads = [], []
        for h in range(3):
            part = slice(4 * h, 4 * h + 4)
            score = (module.wh.weight[part] @ inherent[b].T).T @ (module.wq.weight[part] @ target[b, q, c]) / 4**0.5
            scalars = (cross[b, q] * module.wc).sum(-1)  # [L, J]: W^c is block-diagonal
            alphas.append(score + scalars @ module.beta[:, h])
        lists = [sorted(events, key=lambda e, a=alpha: -float(a[e].detach()))[:4] for alpha in alphas]
        kept = sorted(naive_union(lists, 4)) if events else []
        for h, alpha in enumerate(alphas):
            part = slice(4 * h, 4 * h + 4)
            values = inherent[b] @ module.wv_inherent.weight[part].T + cross[b, q].flatten(1) @ module.wv_cross.weight[part].T
            heads.append(alpha[kept].softmax(0) @ values[kept])
        torch.testing.assert_close(out[b, q, c], module.wo(torch.cat(heads)), atol=1e-5, rtol=1e-5)


def test_stage_one_keeps_the_top_k_of_stage_two_s_own_scores() -> None:
    """With one head the union is that head's top K: K = 20 of 100, as on the sample."""
    torch.manual_seed(0)
    module = TargetAttention(inherent=8, features=1, cross=8, dim=16, heads=1, keep=20)
    inherent, cross, target = torch.randn(3, 100, 8), torch.randn(3, 1, 100, 1, 8), torch.randn(1, 1, 50, 8)
    alpha = module.relevance(module.project(inherent)[0], module.bias(cross), target)
    allowed = torch.ones(3, 1, 100, dtype=torch.bool)
    kept = module.select(alpha, allowed)
    assert (kept.sum(-1) == 20).all()
    everything = module.weigh(alpha, allowed.unsqueeze(2).expand_as(kept))  # stage two, had it seen all
    best = torch.zeros_like(kept).scatter(-1, everything[:, 0].topk(20).indices, True)
    assert torch.equal(kept, best)
    weights = module.weigh(alpha, kept)[:, 0]
    assert torch.equal(weights > 0, kept)


def test_every_head_s_favourite_is_kept_and_k_in_all() -> None:
    module = attention()
    inherent, cross, target, allowed = inputs()
    alpha = module.relevance(module.project(inherent)[0], module.bias(cross), target)
    kept = module.select(alpha, allowed)
    assert (kept.sum(-1) == allowed.sum(-1, keepdim=True).clamp(max=4)).all()
    best = alpha.masked_fill(~allowed[:, None, :, None], -torch.inf).argmax(-1)  # [B, H, Q, C]
    assert kept[0].gather(-1, best[0].permute(1, 2, 0)).all()


def test_it_keeps_all_where_there_are_no_more_than_k() -> None:
    inherent, cross, target, allowed = inputs()
    outs = []
    for keep in (9, 50, None):
        module = attention(keep)
        keys, projected = module.project(inherent)
        outs.append(module(keys, module.bias(cross), module.values(projected, cross), target, allowed))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[1], outs[2])


def test_both_stages_share_their_parameters() -> None:
    """No weight exists but W^h, W^q, W^c, beta, W^v (by rows) and W^o."""
    names = {name.removesuffix(".weight") for name, _ in attention().named_parameters()}
    assert names == {"wh", "wq", "wc", "beta", "wv_inherent", "wv_cross", "wo"}


def test_the_gradient_goes_through_stage_two_alone_and_reaches_all() -> None:
    module = attention()
    inherent, cross, target, allowed = inputs()
    inherent.requires_grad_()
    keys, projected = module.project(inherent)
    out = module(keys, module.bias(cross), module.values(projected, cross), target, allowed)
    out[:, :, 0].square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    alpha = module.relevance(module.project(inherent)[0], module.bias(cross), target)
    kept = module.select(alpha, allowed)
    assert not kept.requires_grad
    assert inherent.grad is not None
    seen = kept[:, :, 0].any(1)  # [B, L]
    assert float(inherent.grad[~seen].abs().sum()) == 0
    assert (inherent.grad[seen].abs().sum(-1) > 0).all()


def test_candidates_shared_by_all_rows_score_as_their_copies() -> None:
    module = attention()
    inherent, cross, target, _ = inputs()
    keys, bias = module.project(inherent)[0], module.bias(cross)
    shared = target[:1, :1]
    torch.testing.assert_close(
        module.relevance(keys, bias, shared), module.relevance(keys, bias, shared.expand(2, 2, -1, -1)), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        module.relevance(keys, bias, shared), module.relevance(keys, bias, shared.expand(2, 1, -1, -1)), atol=1e-5, rtol=1e-5
    )
