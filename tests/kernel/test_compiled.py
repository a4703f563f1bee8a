"""The opt-in provider `compiled`: each op's reference compiled, one case in float32 (a cold compilation takes 10 s)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from userec.builtin.kernels import NEVER_COMPILED, OPS, userec_kernels
from userec.kernel.contract import Kernel, No, Request
from userec.testing.checks_kernel_calls import check_values

COMPILED = {kernel.op: kernel for kernel in userec_kernels() if kernel.provider == "compiled"}
REFERENCES = {kernel.op: kernel for kernel in userec_kernels() if kernel.reference}


@pytest.fixture
def _cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Caches in a temporary folder, no pool of compiling processes, nothing left in memory."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with import_module("torch._inductor.config").patch(compile_threads=1):
        yield
    torch.compiler.reset()


def served(op: str) -> Kernel:
    kernel = COMPILED[op]
    answer = kernel.supports(Request(op))
    if isinstance(answer, No):
        pytest.skip(answer.reason)
    return kernel


@pytest.mark.slow
@pytest.mark.usefixtures("_cold")
@pytest.mark.parametrize("op", [op for op in OPS if op not in NEVER_COMPILED])
def test_values_and_gradients_are_the_references(op: str) -> None:
    kernel = replace(served(op), tolerance={"float32": 1e-5})
    case = next(iter(REFERENCES[op].cases()))
    check_values([kernel, REFERENCES[op]], "compiled", "cpu", [case])


@pytest.mark.slow
@pytest.mark.usefixtures("_cold")
def test_one_compilation_serves_batches_of_every_size() -> None:
    kernel, seen = served("hstu_attention"), []

    def graph(module: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        seen.append(module)
        return module

    compiled = torch.compile(REFERENCES[kernel.op].load(), fullgraph=True, dynamic=True, backend=graph)
    for case in REFERENCES[kernel.op].cases():
        arguments = case.make(torch.Generator().manual_seed(5))
        if case.name in ("blocks", "giant", "even"):  # in `edges` two sizes are equal: the graph would demand that ever after
            torch.testing.assert_close(compiled(**arguments), REFERENCES[kernel.op].load()(**arguments))
    assert len(seen) == 1


def empty_calls(op: str) -> list[dict[str, Any]]:
    made = [case.make(torch.Generator().manual_seed(5)) for case in REFERENCES[op].cases()]
    return [call for call in made if any(isinstance(x, Tensor) and not x.numel() for x in call.values())]


@pytest.mark.parametrize("op", [op for op in OPS if op not in NEVER_COMPILED and empty_calls(op)])
def test_a_call_with_nothing_in_it_compiles_nothing(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(torch, "compile", never)
    kernel = served(op)
    for call in empty_calls(op):
        got, want = kernel.load()(**call), REFERENCES[op].load()(**call)
        for one, other in zip(*((x,) if isinstance(x, Tensor) else x for x in (got, want)), strict=True):
            assert torch.equal(one, other)


def test_most_ops_have_an_empty_call() -> None:
    assert sum(bool(empty_calls(op)) for op in OPS) >= 6


@pytest.mark.parametrize("op", sorted(NEVER_COMPILED))
def test_a_loop_over_time_is_refused_with_its_reason(op: str) -> None:
    assert COMPILED[op].supports(Request(op)) == No(NEVER_COMPILED[op])


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    answer = COMPILED["hstu_attention"].supports(Request("hstu_attention"))
    assert isinstance(answer, No)
    assert "g++" in answer.reason
