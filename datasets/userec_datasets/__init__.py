"""Data sets of userec: TTL, MovieLens, Taobao, Beauty, Diginetica, each read in its published layout. No data lies in here."""

from __future__ import annotations

from collections.abc import Iterable

from userec.dataset.contract import Dataset
from userec.markers import hookimpl
from userec_datasets.beauty import Beauty
from userec_datasets.diginetica import Diginetica
from userec_datasets.movielens import MovieLens1M, MovieLens25M, MovieLens100K
from userec_datasets.taobao import Taobao
from userec_datasets.ttl import TTL


@hookimpl
def userec_datasets() -> Iterable[type[Dataset]]:
    """The data sets of this distribution."""
    return [TTL, MovieLens100K, MovieLens1M, MovieLens25M, Taobao, Beauty, Diginetica]
