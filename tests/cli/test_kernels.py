"""`userec kernels`: op x provider x verdict x reason, as a call would have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from userec.builtin.kernels import userec_kernels
from userec.cli.kernels import request_for
from userec.kernel.contract import Case, Kernel


@pytest.fixture
def built_in(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("userec.registry.DEFAULTS", ("userec.builtin.kernels",))
    monkeypatch.delenv("USEREC_KERNELS", raising=False)


def rows(userec: Any, *words: str) -> dict[tuple[str, str], dict[str, Any]]:
    code, out, _ = userec("kernels", "--json", *words)
    assert code == 0
    return {(row["op"], row["provider"]): row for row in json.loads(out)}


@pytest.mark.usefixtures("built_in")
def test_every_kernel_has_its_verdict_reason_and_origin(userec: Any) -> None:
    found = rows(userec)
    assert set(found) == {(kernel.op, kernel.provider) for kernel in userec_kernels()}
    assert {row["distribution"] for row in found.values()} == {"userec"}
    for op in {op for op, _ in found}:
        assert sum(row["verdict"] == "chosen" for (of, _), row in found.items() if of == op) == 1
    keys = ("op", "provider", "distribution", "version", "verdict", "reason", "priority", "device", "dtype")
    assert all(tuple(row) == keys and row["reason"] for row in found.values())
    out = userec("kernels", "hstu_attention")[1].splitlines()
    assert out[0] == "cpu float32, USEREC_KERNELS=auto"
    assert out[1].split() == ["op", "provider", "verdict", "reason", "distribution", "version"]
    assert [line.split()[:3] for line in out[2:]] == [
        ["hstu_attention", "compiled", "no"],
        ["hstu_attention", "cpu", "chosen"],
        ["hstu_attention", "torch", "yes"],
    ]


@pytest.mark.usefixtures("built_in")
def test_elsewhere_others_serve(userec: Any) -> None:
    found = rows(userec, "hstu_attention", "--device", "cuda", "--dtype", "bfloat16")
    assert {row["device"] for row in found.values()} == {"cuda"}
    assert {row["dtype"] for row in found.values()} == {"bfloat16"}
    assert found["hstu_attention", "cpu"]["reason"] == "device is cuda"
    assert found["hstu_attention", "torch"]["verdict"] == "chosen"


@pytest.mark.usefixtures("built_in")
@pytest.mark.parametrize(
    ("choice", "provider", "verdict", "reason"),
    [
        ("torch", "torch", "chosen", "asked for"),
        ("torch", "cpu", "yes", "torch is asked for"),
        ("hstu_attention=cpu", "torch", "no", "not asked: cpu is pinned"),
        ("torch,strict", "cpu", "no", "not asked: strict, torch must serve"),
        ("torch,strict", "torch", "chosen", "asked for"),
    ],
)
def test_the_choice_shows(
    userec: Any, monkeypatch: pytest.MonkeyPatch, choice: str, provider: str, verdict: str, reason: str
) -> None:
    monkeypatch.setenv("USEREC_KERNELS", choice)
    row = rows(userec, "hstu_attention")["hstu_attention", provider]
    assert (row["verdict"], row["reason"]) == (verdict, reason)
    assert f"USEREC_KERNELS={choice}" in userec("kernels")[1]


@pytest.mark.usefixtures("built_in")
def test_float16_on_a_cpu_is_refused_for_all(userec: Any) -> None:
    found = rows(userec, "hstu_attention", "--dtype", "float16")
    assert {row["verdict"] for row in found.values()} == {"no"}
    assert all("use float32 or bfloat16" in row["reason"] for row in found.values())


@pytest.mark.usefixtures("built_in")
@pytest.mark.parametrize(
    ("words", "choice", "told"),
    [
        (["hstu_atention"], "auto", "unknown kernel op 'hstu_atention'; did you mean 'hstu_attention'?"),
        (["--device", "cudo"], "auto", "unknown device 'cudo' in --device; did you mean 'cuda'?"),
        (["--dtype", "bf16"], "auto", "unknown dtype 'bf16' in --dtype; did you mean 'bfloat16'?"),
        ([], "tosch", "unknown kernel provider 'tosch' in USEREC_KERNELS; did you mean 'torch'?"),
        ([], "hstu=cpu", "unknown kernel op 'hstu' in USEREC_KERNELS; "),
        ([], "hstu_attention=gpu", "unknown provider of hstu_attention 'gpu' in USEREC_KERNELS; did you mean 'cpu'?"),
    ],
)
def test_a_mistake_is_exit_code_2(userec: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], choice: str, told: str) -> None:
    monkeypatch.setenv("USEREC_KERNELS", choice)
    code, out, err = userec("kernels", *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"userec: {told}")


def test_the_request_is_the_first_case_as_it_would_be_called_there() -> None:
    def make(generator: torch.Generator) -> dict[str, Any]:
        return {"x": torch.randn(3, 5, generator=generator, dtype=torch.float64), "bias": None, "by": "mean"}

    def kernel(*cases: Case) -> Kernel:
        return Kernel("sum", "torch", 0, lambda: torch.sum, reference=True, cases=lambda: cases)

    request = request_for(kernel(Case("one", make), Case("other", dict)), "cuda", "bfloat16")
    assert (request.op, request.device, request.dtype, request.dims) == ("sum", "cuda", "bfloat16", (("x", 5),))
    assert request.flags == {"x", "by=mean", "needs_grad"}
    assert "needs_grad" not in request_for(kernel(Case("one", make, fixed=("x",))), "cpu", "float32").flags
    whole = kernel(Case("codes", lambda generator: {"codes": torch.zeros(3, 2, dtype=torch.int64)}))
    assert request_for(whole, "cpu", "bfloat16").dtype == "int64"
    assert request_for(kernel(), "cpu", "float64").dtype == "float64"
