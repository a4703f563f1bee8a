from __future__ import annotations

import pytest

from userec.builtin.kernels import userec_kernels
from userec.testing import contract

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "target_attention"]


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check) -> None:
    check()
