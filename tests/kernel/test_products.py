from __future__ import annotations

import pytest
import torch

from userec.kernel.cpu import products


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    products.choice.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    products.choice.cache_clear()


def test_large_products_are_onednns_where_it_is_exact_and_the_setting_is_put_back(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(products, "product_errors", lambda: {"highest": 2e-7, "medium": 4e-7})
    before = torch.get_float32_matmul_precision()
    with products.large_products():
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before


def test_bfloat16_in_disguise_is_refused(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(products, "product_errors", lambda: {"highest": 2e-7, "medium": 1e-3})
    with products.large_products():
        assert torch.get_float32_matmul_precision() == "highest"
    assert products.choice() == ("highest", "relative error 1.0e-03 with medium, 2.0e-07 with highest")


def test_torchs_own_way_is_float32_here() -> None:
    assert products.product_errors()["highest"] < products.FP32_ERROR
