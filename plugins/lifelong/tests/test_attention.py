from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from userec_lifelong.attention import TargetAttention

from userec.builtin.kernels import userec_kernels
from userec.kernel.dispatch import Kernels


def naive_union(lists: list[list[int]], keep: int) -> set[int]:
    """Walk the heads' lists in turn until `keep` unique events are found."""
    found: list[int] = []
    for turn in range(len(lists[0])):
        for ranked in lists:
            if len(found) < keep and ranked[turn] not in found:
                found.append(ranked[turn])
    return set(found)


class Build:
    """The least of a Build: kernels."""

    def op(self, name: str) -> Callable[..., Tensor]:
        return Kernels(userec_kernels(), use="auto").op(name)


def attention(keep: int | None = 4) -> TargetAttention:
    torch.manual_seed(0)
    return TargetAttention(Build(), inherent=8, features=2, cross=3, dim=12, heads=3, keep=keep)  # type: ignore[arg-type]


def attend(module: TargetAttention, inherent: Tensor, cross: Tensor, target: Tensor, allowed: Tensor) -> Tensor:
    keys, values = module.project(inherent)
    return module(keys, values, cross, module.bias(cross), target, allowed)


def weights(module: TargetAttention, inherent: Tensor, cross: Tensor, target: Tensor, allowed: Tensor) -> Tensor:
    """What events are weighed with, [B, Q, C, H, L]: the context is the identity, so that the sum tells."""
    keys, _ = module.project(inherent)
    tell = torch.eye(keys.shape[2]).expand(*allowed.shape[:2], -1, -1)
    q = module._split(module.wq(target))
    return module.attend(q, keys, keys[..., :0], module.bias(cross), allowed, tell, keep=module.keep)


def inputs(rows: int = 2, asked: int = 2, candidates: int = 3, length: int = 9) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    allowed = torch.arange(length) < torch.tensor([[length, 6], [2, 0]])[:rows, :asked, None]
    inherent, cross = torch.randn(rows, length, 8), torch.randn(rows, asked, length, 2, 3)
    return inherent, cross, torch.randn(rows, asked, candidates, 8), allowed


def test_the_two_stages_are_the_paper_s_formulas() -> None:
    """alpha, top K of its union, softmax of the same alpha, K W^v, W^o: one (row, question, candidate) at a time, in loops."""
    module = attention()
    inherent, cross, target, allowed = inputs()
    out = attend(module, inherent, cross, target, allowed)
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
    module = TargetAttention(Build(), inherent=8, features=1, cross=8, dim=16, heads=1, keep=20)  # type: ignore[arg-type]
    inherent, cross, target = torch.randn(3, 100, 8), torch.randn(3, 1, 100, 1, 8), torch.randn(1, 1, 50, 8)
    allowed = torch.ones(3, 1, 100, dtype=torch.bool)
    some = weights(module, inherent, cross, target, allowed)
    module.keep = None
    everything = weights(module, inherent, cross, target, allowed)  # stage two, had it seen all
    best = torch.zeros_like(some, dtype=torch.bool).scatter(-1, everything.topk(20).indices, True)
    assert torch.equal(some > 0, best)


def test_every_head_s_favourite_is_kept_and_k_in_all() -> None:
    module = attention()
    inherent, cross, target, allowed = inputs()
    found = weights(module, inherent, cross, target, allowed)  # [B, Q, C, H, L]
    kept = found[..., 0, :] > 0
    assert torch.equal(found > 0, kept.unsqueeze(3).expand_as(found))
    assert (kept.sum(-1) == allowed.sum(-1, keepdim=True).clamp(max=4)).all()
    module.keep = None
    best = weights(module, inherent, cross, target, allowed).argmax(-1)  # [B, Q, C, H]
    assert kept[0].gather(-1, best[0]).all()


def test_it_keeps_all_where_there_are_no_more_than_k() -> None:
    inherent, cross, target, allowed = inputs()
    outs = []
    for keep in (9, 50, None):
        module = attention(keep)
        outs.append(attend(module, inherent, cross, target, allowed))
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
    out = attend(module, inherent, cross, target, allowed)
    out[:, :, 0].square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    assert inherent.grad is not None
    seen = (weights(module, inherent, cross, target, allowed)[:, :, 0] > 0).any(2).any(1)  # [B, L]
    assert float(inherent.grad[~seen].abs().sum()) == 0
    assert (inherent.grad[seen].abs().sum(-1) > 0).all()


def test_candidates_shared_by_all_rows_score_as_their_copies() -> None:
    module = attention()
    inherent, cross, target, allowed = inputs()
    alone = attend(module, inherent, cross, target[:1, :1], allowed)
    for questions in (1, 2):
        copies = attend(module, inherent, cross, target[:1, :1].expand(2, questions, -1, -1), allowed)
        torch.testing.assert_close(alone, copies, atol=1e-5, rtol=1e-5)


def test_values_of_cross_features_may_be_projected_after_the_sum() -> None:
    """K W^v made of all events, then weighed, gives the same."""
    module = attention()
    inherent, cross, target, allowed = inputs()
    values = module.wv_inherent(inherent).unsqueeze(1) + module.wv_cross(cross.flatten(3))  # [B, Q, L, D]
    found = weights(module, inherent, cross, target, allowed)
    plain = torch.einsum("bqchl,bqlhd->bqchd", found, values.unflatten(-1, (3, 4))).flatten(3)
    torch.testing.assert_close(attend(module, inherent, cross, target, allowed), module.wo(plain), atol=1e-5, rtol=1e-5)
