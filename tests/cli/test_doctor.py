"""`userec doctor` finds what is planted, and exits 1 for it."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from userec.cli import doctor
from userec.kernel.cpu import products


def findings(userec: Any, *words: str) -> tuple[int, dict[str, dict[str, str]]]:
    code, out, _ = userec("doctor", "--json", *words)
    return code, {row["name"]: row for row in json.loads(out)}


def test_a_sound_installation(install: Any, userec: Any) -> None:
    install("good")
    code, found = findings(userec)
    assert code == 0, [row for row in found.values() if row["status"] == "FAIL"]
    assert {
        "python",
        "dependencies",
        "torch",
        "numpy",
        "pandas",
        "plugins",
        "fp32 matmul",
        "kernels",
        "cache",
        "disk",
        "data",
    } == set(found)
    assert "threads" in found["torch"]["detail"]
    assert userec("doctor")[1].count("\nok ") == 11


@pytest.mark.parametrize("kind", ["broken_on_import", "raises_in_hook", "misspelt_hook", "wrong_signature"])
def test_a_broken_plugin(install: Any, userec: Any, kind: str) -> None:
    install(kind, "bad")
    code, found = findings(userec)
    assert code == 1
    assert found["plugin bad"]["status"] == "FAIL"
    assert "-p no:bad" in found["plugin bad"]["way_out"]
    assert "FAIL  plugin bad" in userec("doctor")[1]
    assert findings(userec, "-p", "no:bad")[0] == 0


def test_a_name_claimed_twice(install: Any, userec: Any) -> None:
    install("good")
    install("another", "acme")
    code, found = findings(userec)
    assert code == 1
    assert "acme 1.0" in found["name newest"]["detail"]
    assert "userec-good:newest" in found["name newest"]["way_out"] or "acme:newest" in found["name newest"]["way_out"]


def test_an_incompatible_plugin_is_a_warning(install: Any, userec: Any) -> None:
    install("good", "future", group="userec2")
    code, found = findings(userec)
    assert (code, found["plugin future"]["status"]) == (0, "warn")


def test_a_cache_that_cannot_be_written(userec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("USEREC_CACHE", str(tmp_path / "file" / "cache"))
    code, found = findings(userec)
    assert (code, found["cache"]["status"]) == (1, "FAIL")
    assert "USEREC_CACHE" in found["cache"]["way_out"]


def test_a_data_folder_that_is_none(userec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USEREC_DATA", str(tmp_path / "nowhere"))
    code, found = findings(userec)
    assert (code, found["data"]["status"]) == (1, "FAIL")
    monkeypatch.setenv("USEREC_DATA", str(tmp_path))
    assert findings(userec)[0] == 0


@pytest.mark.parametrize("line", ["a-package-that-nobody-has>=1", "numpy>=999"])
def test_a_dependency_out_of_range(userec: Any, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [line, "pluggy", "nothing; extra == 'test'"])
    code, found = findings(userec)
    assert (code, found["dependencies"]["status"]) == (1, "FAIL")
    assert line in found["dependencies"]["detail"]
    assert "pluggy" not in found["dependencies"]["detail"]


def test_a_package_that_does_not_import(userec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> str:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "_torch", fails)
    code, found = findings(userec)
    assert (code, found["torch"]["status"]) == (1, "FAIL")
    assert "libgomp" in found["torch"]["detail"]


def test_little_disk_is_a_warning(userec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK_GB", 1e12)
    code, found = findings(userec)
    assert (code, found["disk"]["status"]) == (0, "warn")


def test_the_matrix_product_is_told_by_speed_and_chosen_by_error(userec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    told = findings(userec)[1]["fp32 matmul"]["detail"]
    speeds = [float(number) for number in re.findall(r"([\d.]+) GFLOP/s", told)]
    errors = [float(number) for number in re.findall(r"error ([\d.e+-]+)", told)]
    assert len(speeds) == len(errors) == 2
    assert min(speeds) > 0
    assert errors[0] < products.FP32_ERROR
    assert ("medium is chosen for large products" in told) == (errors[1] <= products.FP32_ERROR)
    assert torch.get_float32_matmul_precision() == before
    monkeypatch.setattr(products, "product_errors", lambda: {"highest": 2e-7, "medium": 1e-3})
    assert "highest is chosen for all products: medium is no fp32" in findings(userec)[1]["fp32 matmul"]["detail"]


def test_a_choice_of_kernels_that_cannot_be_had(userec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("userec.registry.DEFAULTS", ("userec.builtin.kernels",))
    assert re.fullmatch(r"\d+ ops, \d+ kernels of 3 providers \(compiled, cpu, torch\)", findings(userec)[1]["kernels"]["detail"])
    monkeypatch.setattr("userec.builtin.kernels.shutil.which", lambda name: None)
    monkeypatch.setenv("USEREC_KERNELS", "compiled")
    code, found = findings(userec)
    assert (code, found["USEREC_KERNELS"]["status"]) == (0, "warn")
    assert "compiled cannot serve" in found["USEREC_KERNELS"]["detail"]
    assert "install g++" in found["USEREC_KERNELS"]["detail"]
    monkeypatch.setenv("USEREC_KERNELS", "hstu_attention=compiled")
    assert "nothing serves hstu_attention:" in userec("doctor")[1]
    monkeypatch.setenv("USEREC_KERNELS", "cpus")
    code, found = findings(userec)
    assert (code, found["kernels"]["status"]) == (1, "FAIL")
    assert "did you mean 'cpu'?" in found["kernels"]["detail"]
