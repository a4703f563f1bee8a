"""A stranger's kernels, the ones in docs/kernels.md: picked up, proved, chosen by priority, refused in their own words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from userec.cli.kernels import kernels_of
from userec.kernel.dispatch import Kernels
from userec.registry import load

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
HSTU = "hstu_attention"

Put = Callable[..., None]


def block(first: str) -> str:
    for text in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if text.startswith(first):
            return text
    raise AssertionError(f"{PAGE.name} has no python block that starts with {first!r}")


@pytest.fixture
def put(site: Path, install: Any, monkeypatch: pytest.MonkeyPatch) -> Put:
    """`put("stranger_kernel", ("old", "new"))`: the documented block as a distribution beside the built-in kernels, changed."""
    monkeypatch.setattr("userec.registry.DEFAULTS", ("userec.builtin.kernels",))
    monkeypatch.delenv("USEREC_KERNELS", raising=False)

    def write(module: str, *changes: tuple[str, str]) -> None:
        text = block(f"# {module}.py")
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (site / f"{module}.py").write_text(text)
        install(module, module.replace("_", "-"), version="0.3")

    return write


def rows(userec: Any, *words: str) -> dict[str, tuple[str, str]]:
    found = json.loads(userec("kernels", HSTU, "--json", *words)[1])
    return {row["provider"]: (row["verdict"], row["reason"]) for row in found}


def arguments(kernels: Kernels, case: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    made = next(one for one in kernels.reference(HSTU).cases() if one.name == case).make(torch.Generator().manual_seed(0))
    return {name: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for name, x in made.items()}


def test_it_is_about_twenty_lines() -> None:
    lines = [
        line
        for line in block("# stranger_kernel.py").splitlines()
        if line.strip() and not line.startswith(("#", "from ", "import "))
    ]
    assert len(lines) <= 22, len(lines)


def test_it_is_picked_up(put: Put, userec: Any) -> None:
    put("stranger_kernel")
    listed = {row["name"]: row for row in json.loads(userec("list", "kernels", "--json")[1])}
    assert listed[f"{HSTU}/stranger"]["distribution"] == "stranger-kernel"
    assert listed[f"{HSTU}/torch"]["distribution"] == "userec"
    found = rows(userec)  # the first case has both biases
    assert found["stranger"] == ("no", "stranger has no time bias")
    assert found["cpu"] == ("chosen", "priority 10")
    assert rows(userec, "--dtype", "bfloat16")["stranger"] == ("no", "stranger needs float32 on a CPU")
    assert rows(userec, "--device", "cuda")["stranger"] == ("no", "stranger needs float32 on a CPU")
    assert "stranger-kernel  0.3" in userec("kernels")[1]
    assert "stranger  stranger-kernel  0.3      priority 60" in userec("show", HSTU)[1]
    assert "4 providers (compiled, cpu, stranger, torch)" in userec("doctor")[1]


def test_it_is_chosen_where_it_serves_and_the_next_one_elsewhere(put: Put) -> None:
    put("stranger_kernel")
    kernels = kernels_of(load())
    attend = kernels.op(HSTU)
    for case, dtype, provider in (
        ("position alone", torch.float32, "stranger"),
        ("no bias", torch.float32, "stranger"),
        ("time alone", torch.float32, "cpu"),
        ("no bias", torch.bfloat16, "cpu"),
    ):
        call = arguments(kernels, case, dtype)
        out = attend(**call)
        torch.testing.assert_close(
            out, kernels.reference(HSTU).load()(**call), atol=1e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-4
        )
        assert provider in kernels.chosen()[HSTU]["provider"]
    told = kernels.chosen()[HSTU]
    assert told["provider"] == "stranger, cpu"
    assert told["reasons"]["stranger"] == "priority 60; no: stranger has no time bias; no: stranger needs float32 on a CPU"


def test_a_choice_names_it(put: Put, userec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put("stranger_kernel")
    monkeypatch.setenv("USEREC_KERNELS", f"{HSTU}=stranger")
    assert {verdict for verdict, _ in rows(userec).values()} == {"no"}
    assert "stranger cannot serve hstu_attention: stranger has no time bias" in userec("doctor")[1]
    monkeypatch.setenv("USEREC_KERNELS", "strangr")
    assert userec("kernels")[::2] == (
        2,
        "userec: unknown kernel provider 'strangr' in USEREC_KERNELS; did you mean 'stranger'?\n",
    )


def findings(userec: Any) -> dict[str, dict[str, str]]:
    code, out, _ = userec("doctor", "--json")
    assert code == 0, out
    return {row["name"]: row for row in json.loads(out)}


def test_a_supports_that_raises_is_a_row_and_a_warning(put: Put, userec: Any) -> None:
    put("stranger_kernel", ('    return No("stranger has no time bias")', "    request.dims['q']\n    return No(\"no time\")"))
    reason = "supports raises TypeError: tuple indices must be integers or slices, not str"
    found = rows(userec)
    assert found["stranger"] == ("no", reason)
    assert found["cpu"] == ("chosen", "priority 10")
    warned = findings(userec)[f"kernel {HSTU}/stranger"]
    assert (warned["status"], warned["detail"]) == ("warn", f"stranger-kernel 0.3: {reason}: a run that calls the op fails")
    assert "no:stranger-kernel" in warned["way_out"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("    for name, lengths in EDGES", "    for name, lengths in EDGE"), "NameError: name 'EDGE' is not defined"),
        (
            ("    x = torch.randn(sum(lengths)", '    x = torch.randn(keep["far"]'),
            "TypeError: 'float' object is not subscriptable",
        ),
    ],
    ids=["cases", "make"],
)
def test_cases_that_raise_are_told_beside_the_verdict(put: Put, userec: Any, change: tuple[str, str], reason: str) -> None:
    put("faded_sum", change)
    (row,) = json.loads(userec("kernels", "faded_sum", "--json")[1])
    told = f"priority 0; its cases raise {reason}"
    assert (row["verdict"], row["reason"], row["distribution"]) == ("chosen", told, "faded-sum")
    warned = findings(userec)["kernel faded_sum/torch"]
    assert (warned["status"], warned["detail"]) == ("warn", f"faded-sum 0.3: its cases raise {reason}")


def test_show_tells_what_raises(put: Put, userec: Any) -> None:
    put("faded_sum", ("load=lambda: faded_sum", "load=lambda: fadedsum"), ("in EDGES.items()", "in EDGE.items()"))
    code, out, _ = userec("show", "faded_sum")
    assert code == 0
    assert "load of faded_sum/torch (faded-sum 0.3) raises NameError: name 'fadedsum' is not defined" in out
    assert "cases of faded_sum/torch (faded-sum 0.3) raises NameError: name 'EDGE' is not defined" in out


def test_an_op_without_a_reference_stops_nothing_but_itself(put: Put, userec: Any) -> None:
    put("stranger_kernel", ('Kernel("hstu_attention"', 'Kernel("hstu_atention"'))
    (row,) = json.loads(userec("kernels", "hstu_atention", "--json")[1])
    told = ("stranger", "stranger-kernel", "no", "kernel op 'hstu_atention' has no reference")
    assert (row["provider"], row["distribution"], row["verdict"], row["reason"]) == told
    assert "kernel op 'hstu_atention' has no reference" in userec("kernels")[1]
    assert rows(userec)["cpu"] == ("chosen", "priority 10")
    warned = findings(userec)["kernel hstu_atention/stranger"]
    assert (warned["status"], warned["detail"].partition(":")[0]) == ("warn", "stranger-kernel 0.3")
    assert "has no reference, so nothing can call it" in userec("show", "hstu_atention")[1]
    code, out, _ = userec("plugins", "check", "stranger-kernel")
    assert code == 1
    assert "kernel op 'hstu_atention' has no reference; brought by stranger" in out


def test_the_kit_proves_it(put: Put, userec: Any) -> None:
    put("stranger_kernel")
    code, out, _ = userec("plugins", "check", "stranger-kernel")
    assert code == 0, out
    for check in ("values", "layouts", "guards", "users", "bits", "opcheck"):
        assert f"ok    {HSTU}  {check}-stranger" in out


def test_a_broken_one_fails_the_kit_by_op_provider_and_case(put: Put, userec: Any) -> None:
    put("stranger_kernel", (".tril()", ""))
    code, out, _ = userec("plugins", "check", "stranger-kernel")
    assert code == 1
    (told,) = [line for line in out.splitlines() if line.startswith(f"FAIL  {HSTU}  values-stranger")]
    assert f"{HSTU}/stranger in float32, case 'no bias': result 0: relative error" in told
    assert "FAIL" not in "".join(line for line in out.splitlines() if "stranger" not in line)


def test_one_that_says_no_without_a_reason_fails_the_kit(put: Put, userec: Any) -> None:
    put("stranger_kernel", ("stranger needs float32 on a CPU", ""))
    code, out, _ = userec("plugins", "check", "stranger-kernel")
    assert code == 1
    assert f"{HSTU}/stranger: supports says No without a reason" in out


def test_a_new_op_is_listed_proved_and_called(put: Put, userec: Any) -> None:
    put("faded_sum")
    (row,) = json.loads(userec("kernels", "faded_sum", "--json")[1])
    assert (row["provider"], row["distribution"], row["verdict"]) == ("torch", "faded-sum", "chosen")
    assert "y_u = sum_n keep^n x_{-1-n}" in userec("show", "faded_sum")[1]
    code, out, _ = userec("plugins", "check", "faded-sum")
    assert code == 0, out
    assert "ok    faded_sum  gradcheck-torch" in out
    x = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    fade = kernels_of(load()).op("faded_sum")
    assert fade(x, torch.tensor([0, 3, 3, 4]), max_len=3).tolist() == [[4 + 1 + 0.25], [0], [8]]


def test_a_new_op_without_cases_fails_the_kit(put: Put, userec: Any) -> None:
    put("faded_sum", (", cases=cases)", ")"))
    code, out, _ = userec("plugins", "check", "faded-sum")
    assert code == 1
    assert "faded_sum/torch: the reference brings no cases: nothing proves its providers" in out
