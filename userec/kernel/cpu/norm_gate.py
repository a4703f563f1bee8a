"""LayerNorm times a gate: the reference is the CPU's form too.

Tried, single-threaded, widths 64 to 512, 10^4 to 10^7 numbers: a backward of its own that makes the norm again, whole or in
blocks of 0.5 to 2 MB, was from somewhat faster to twice slower in training than torch's two operations (the norm is vectorised,
the product is one pass). What it would save is one tensor of x's size."""

from userec.kernel.reference.norm_gate import norm_gate

__all__ = ["norm_gate"]
