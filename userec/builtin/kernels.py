"""The built-in ops: a reference of each in plain torch, and its form for CPUs."""

from __future__ import annotations

from collections.abc import Iterable

from userec.kernel.contract import Kernel
from userec.kernel.cpu import attention as cpu_attention
from userec.kernel.cpu import cross_entropy as cpu_cross_entropy
from userec.kernel.reference import attention, cross_entropy
from userec.markers import hookimpl


@hookimpl
def userec_kernels() -> Iterable[Kernel]:
    """Softmax attention and the cross-entropy of a linear layer."""
    return [
        Kernel("attention", "torch", 0, lambda: attention.attention, reference=True),
        Kernel("attention", "cpu", 10, lambda: cpu_attention.attention, cpu_attention.supports),
        Kernel("linear_cross_entropy", "torch", 0, lambda: cross_entropy.linear_cross_entropy, reference=True),
        Kernel("linear_cross_entropy", "cpu", 10, lambda: cpu_cross_entropy.linear_cross_entropy, cpu_cross_entropy.supports),
    ]
