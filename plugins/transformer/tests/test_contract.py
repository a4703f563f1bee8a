from __future__ import annotations

import pytest
from userec_transformer.bert4rec import BERT4Rec
from userec_transformer.gsasrec import GSASRec
from userec_transformer.pinnerformer import PinnerFormer
from userec_transformer.sasrec import SASRec

from userec.testing import Check, contract


@pytest.mark.parametrize("check", contract(SASRec, dim=8, layers=1, window=16))
def test_contract(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", contract(GSASRec, dim=8, layers=1, window=16))
def test_contract_gsasrec(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", contract(BERT4Rec, dim=8, layers=1, heads=2, window=16))
def test_contract_bert4rec(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", contract(PinnerFormer, dim=8, hidden=8, layers=1, window=16))
def test_contract_pinnerformer(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", contract(PinnerFormer, dim=8, hidden=8, layers=1, window=16, since_latest=True))
def test_contract_pinnerformer_that_knows_the_latest(check: Check) -> None:
    check()
