"""A provider's results on the op's cases: each check makes the calls of every case and compares with the float64 reference."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from userec.kernel.contract import Case, Kernel, Yes
from userec.kernel.dispatch import request_of
from userec.testing.check import holds

CEILING: Final = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
"""The greatest tolerance that a kernel may declare, by dtype."""
OF_GRADIENTS: Final = {"float64": 10.0, "float32": 10.0, "bfloat16": 2.0, "float16": 2.0}
"""How much more gradients may err."""
NOISE: Final = {"float64": 1e-15, "float32": 5e-7, "bfloat16": 1e-4, "float16": 1e-4}
"""What a value may be off where it should be nothing at all: what rounding leaves of numbers around 1."""
WORST_ROW: Final = 20.0
"""How much more a single value may err, relative to the greatest."""
GUARD: Final = 64
"""Numbers before and after a guarded tensor."""

Arguments = dict[str, Any]
Arrange = Callable[[str, Tensor], Tensor]
"""The same numbers in another layout; the name says of which argument they are."""


def _as_it_is(name: str, x: Tensor) -> Tensor:
    return x


def check_values(kernels: Sequence[Kernel], provider: str, device: str, cases: Sequence[Case]) -> None:
    """Results and gradients within tolerance of the float64 reference, and no worse than twice the reference in that dtype."""
    kernel, reference = _pair(kernels, provider)
    for dtype, tolerance in kernel.tolerance.items():
        holds(tolerance <= CEILING.get(dtype, 0), f"{_name(kernel)}: a tolerance of {tolerance} in {dtype} is above the ceiling")
        for case, arguments in calls(kernel, device, dtype, cases):
            told = f"{_name(kernel)} in {dtype}, case {case.name!r}"
            want = _results(reference, case, _double(arguments))
            plain = _results(reference, case, arguments)
            for name, got in _results(kernel, case, arguments).items():
                allowed = tolerance * (OF_GRADIENTS[dtype] if name.startswith("gradient") else 1)
                itself = kernel.reference and dtype in ("float64", "float32")  # in fewer digits it is the measure of others
                _close(f"{told}: {name}", got, want[name], want[name] if itself else plain[name], allowed)


def check_layouts(kernels: Sequence[Kernel], provider: str, device: str, cases: Sequence[Case]) -> None:
    """Transposed, sliced and expanded inputs and upstream gradients, and int32 offsets, change nothing."""
    kernel, reference = _pair(kernels, provider)
    dtype = _dtype(kernel)
    for case, arguments in calls(kernel, device, dtype, cases):
        for layout, arrange in LAYOUTS.items():
            arranged = {name: arrange(name, x) if isinstance(x, Tensor) else x for name, x in arguments.items()}
            told = f"{_name(kernel)}, case {case.name!r} with {layout} inputs"
            want = _results(reference, case, _double(arranged), arrange)
            plain = _results(reference, case, arranged, arrange)
            for name, got in _results(kernel, case, arranged, arrange).items():
                _close(f"{told}: {name}", got, want[name], plain[name], 2 * kernel.tolerance[dtype] * OF_GRADIENTS[dtype])


def check_guards(kernels: Sequence[Kernel], provider: str, device: str, cases: Sequence[Case]) -> None:
    """Nothing outside an input is read (it is NaN there) or written, and no input changes."""
    kernel, reference = _pair(kernels, provider)
    dtype = _dtype(kernel)
    for case, arguments in calls(kernel, device, dtype, cases):
        told = f"{_name(kernel)}, case {case.name!r}"
        zones: dict[str, Tensor] = {}
        guarded = {name: _guard(name, x, zones) if isinstance(x, Tensor) else x for name, x in arguments.items()}
        before = {name: zone.clone() for name, zone in zones.items()}
        want, plain = _results(reference, case, _double(arguments)), _results(reference, case, arguments)
        for name, got in _results(kernel, case, guarded).items():
            allowed = 2 * kernel.tolerance[dtype] * OF_GRADIENTS[dtype]
            _close(f"{told} between guards: {name}", got, want[name], plain[name], allowed)
        for name, zone in zones.items():
            holds(
                torch.equal(zone.nan_to_num(7.5), before[name].nan_to_num(7.5)),
                f"{told}: {name} or what lies about it was written",
            )


def check_users(kernels: Sequence[Kernel], provider: str, device: str, cases: Sequence[Case]) -> None:
    """Each user alone gets what he gets among others, and does so where another user's numbers are NaN."""
    kernel, _ = _pair(kernels, provider)
    dtype = _dtype(kernel)
    for case, arguments in calls(kernel, device, dtype, cases):
        count = _users(case, arguments)
        if count < 2 or "shared" in case.out:
            continue
        told = f"{_name(kernel)}, case {case.name!r}"
        together = _outputs(kernel, arguments)
        spoiled = max((user for user in range(count) if _has_events(case, arguments, user)), default=count - 1)
        poisoned = _outputs(kernel, _poison(case, arguments, spoiled))
        for user in range(count):
            alone = _outputs(kernel, _only(case, arguments, user))
            for which, (layout, whole, one, other) in enumerate(zip(case.out, together, alone, poisoned, strict=True)):
                rows = slice(user, user + 1) if layout == "user" else _span(arguments, user)
                what = f"{told}: result {which} of user {user}"
                allowed = 2 * kernel.tolerance[dtype]
                _close(f"{what} alone", one, whole[rows], whole[rows], allowed)
                if user != spoiled:
                    _close(f"{what} beside a user of NaN", other[rows], whole[rows], whole[rows], allowed)


def check_bits(kernels: Sequence[Kernel], provider: str, device: str, cases: Sequence[Case]) -> None:
    """The same call twice gives the same bits, gradients too, unless the kernel says that it is not deterministic."""
    kernel, _ = _pair(kernels, provider)
    if not kernel.deterministic:
        return
    for case, arguments in islice(calls(kernel, device, _dtype(kernel), cases), 2):
        once, again = _results(kernel, case, arguments), _results(kernel, case, arguments)
        for name, x in once.items():
            holds(
                torch.equal(x, again[name]),
                f"{_name(kernel)}, case {case.name!r}: {name} differs in a second call: deterministic",
            )


def check_opcheck(kernels: Sequence[Kernel], provider: str, device: str, cases: Sequence[Case]) -> None:
    """Every custom operator that a call runs through, forward and backward, passes `torch.library.opcheck`."""
    kernel, _ = _pair(kernels, provider)
    forward, backward = _Recorder(), _Recorder()
    for case, arguments in calls(kernel, device, _dtype(kernel), cases):
        with forward:
            outputs = _outputs(kernel, _graded(case, arguments))
        with backward:
            if any(x.requires_grad for x in outputs):
                sum(x.sum() for x in outputs if x.requires_grad).backward()  # type: ignore[union-attr]
    for recorder, graded in ((forward, True), (backward, False)):
        for op, args, kwargs in recorder.calls.values():
            fresh = tree_map_only(Tensor, partial(_fresh, graded=graded), (args, kwargs))
            with contextlib.redirect_stdout(io.StringIO()):
                torch.library.opcheck(op, *fresh)


def check_gradcheck(kernels: Sequence[Kernel], provider: str, device: str, cases: Sequence[Case]) -> None:
    """The reference's gradients are those of its values, by finite differences in float64."""
    kernel, _ = _pair(kernels, provider)
    for case, arguments in calls(kernel, device, "float64", cases[:1]):
        graded = _graded(case, arguments)
        names = [name for name, x in graded.items() if isinstance(x, Tensor) and x.requires_grad]
        if not names:
            continue

        def call(*tensors: Tensor, graded: Arguments = graded, names: list[str] = names) -> tuple[Tensor, ...]:
            return tuple(_outputs(kernel, graded | dict(zip(names, tensors, strict=True))))

        inputs = tuple(graded[name] for name in names)
        holds(
            torch.autograd.gradcheck(call, inputs, fast_mode=True, raise_exception=False),
            f"{_name(kernel)}, case {case.name!r}: gradcheck",
        )


def _name(kernel: Kernel) -> str:
    return f"{kernel.op}/{kernel.provider}"


def _pair(kernels: Sequence[Kernel], provider: str) -> tuple[Kernel, Kernel]:
    """(that provider's kernel, the reference)."""
    return next(k for k in kernels if k.provider == provider), next(k for k in kernels if k.reference)


def _dtype(kernel: Kernel) -> str:
    """In which the proofs are made that are made in one."""
    return "float32" if "float32" in kernel.tolerance else next(iter(kernel.tolerance))


def calls(kernel: Kernel, device: str, dtype: str, cases: Sequence[Case]) -> Iterator[tuple[Case, Arguments]]:
    """Each case that the kernel says it serves, in that dtype on that device."""
    for case in cases:
        made = case.make(torch.Generator().manual_seed(17))
        arguments = {
            name: x.to(device, getattr(torch, dtype) if x.is_floating_point() else None) if isinstance(x, Tensor) else x
            for name, x in made.items()
        }
        if isinstance(kernel.supports(request_of(kernel.op, arguments, kernel.lengths)), Yes):
            yield case, arguments


def _double(arguments: Mapping[str, Any]) -> Arguments:
    return {n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in arguments.items()}


def _graded(case: Case, arguments: Mapping[str, Any]) -> Arguments:
    """Fresh leaves, keeping each tensor's layout."""
    return {
        name: x.detach().requires_grad_(x.is_floating_point() and name not in case.fixed) if isinstance(x, Tensor) else x
        for name, x in arguments.items()
    }


def _outputs(kernel: Kernel, arguments: Mapping[str, Any]) -> list[Tensor]:
    found = kernel.load()(**arguments)
    return [found] if isinstance(found, Tensor) else list(found)


def _results(kernel: Kernel, case: Case, arguments: Mapping[str, Any], arrange: Arrange = _as_it_is) -> dict[str, Tensor]:
    """{result 0: ..., gradient of q: ...}; upstream gradients are drawn, then arranged."""
    graded = _graded(case, arguments)
    outputs = _outputs(kernel, graded)
    found = {f"result {i}": x.detach() for i, x in enumerate(outputs)}
    holds(len(outputs) == len(case.out), f"{_name(kernel)}: {len(outputs)} results, the case {case.name!r} says {len(case.out)}")
    inputs = {name: x for name, x in graded.items() if isinstance(x, Tensor) and x.requires_grad}
    roots = [x for x in outputs if x.requires_grad]
    if not roots or not inputs:
        return found
    generator = torch.Generator().manual_seed(23)
    drawn = [torch.randn(x.shape, generator=generator).bfloat16().to(x) for x in roots]  # exact in every dtype
    upstream = [arrange("upstream", x) for x in drawn]
    gradients = torch.autograd.grad(roots, list(inputs.values()), upstream, allow_unused=True)
    for (name, x), gradient in zip(inputs.items(), gradients, strict=True):
        found[f"gradient of {name}"] = torch.zeros_like(x) if gradient is None else gradient
    return found


def _close(what: str, got: Tensor, want: Tensor, plain: Tensor, tolerance: float) -> None:
    """`got` within `tolerance` of the float64 `want`, as a whole and value by value, and at most twice as far as `plain`, what
    the reference makes of the same numbers (where that is beyond `tolerance` itself, no farther); whole numbers must be equal."""
    holds(got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, the reference has {tuple(want.shape)}")
    if not got.is_floating_point():
        holds(torch.equal(got, want.to(got.dtype)), f"{what} differs from the reference")
        return
    if not got.numel():
        return
    want = want.double()  # whole numbers, compared above, would lose digits
    holds(got.isfinite().all(), f"{what} has values that are no numbers")
    error, usual = (got.double() - want).abs(), (plain.double() - want).abs()
    noise = NOISE[str(got.dtype).removeprefix("torch.")]
    size, own = float(want.norm()), float(usual.norm())
    allowed = max(min(tolerance * size, max(2 * own, tolerance * size / 3)), own) + noise * want.numel() ** 0.5
    told = f"relative error {float(error.norm()) / max(size, 1e-30):.2e}, allowed {allowed / max(size, 1e-30):.1e}"
    holds(float(error.norm()) <= allowed, f"{what}: {told}")
    worst, greatest = float(error.max()), float(want.abs().max())
    holds(
        worst <= WORST_ROW * (max(tolerance * greatest, float(usual.max())) + noise),
        f"{what}: a value errs by {worst:.2e} where the greatest is {greatest:.2e}",
    )


def _transposed(name: str, x: Tensor) -> Tensor:
    return x if x.dim() < 2 else x.transpose(-1, -2).contiguous().transpose(-1, -2)


def _sliced(name: str, x: Tensor) -> Tensor:
    """Every other entry of a wider tensor."""
    if not x.dim() or name == "offsets":
        return x
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), _nothing(x))
    wide[..., ::2] = x
    return wide[..., ::2]


def _expanded(name: str, x: Tensor) -> Tensor:
    """The first entry for all, held once; of an upstream gradient one number, as `sum` hands it down."""
    if name == "upstream":
        return x.new_ones(()).expand_as(x)
    return x[:1].expand_as(x) if x.is_floating_point() and x.dim() and len(x) else x


def _short_offsets(name: str, x: Tensor) -> Tensor:
    return x.int() if name == "offsets" else x


LAYOUTS: Final[dict[str, Arrange]] = {
    "transposed": _transposed,
    "sliced": _sliced,
    "expanded": _expanded,
    "int32": _short_offsets,
}


def _nothing(x: Tensor) -> Any:
    """What no kernel may read."""
    if x.is_floating_point():
        return torch.nan
    return True if x.dtype == torch.bool else torch.iinfo(x.dtype).max // 2


def _guard(name: str, x: Tensor, zones: dict[str, Tensor]) -> Tensor:
    zone = zones[name] = x.new_full((x.numel() + 2 * GUARD,), _nothing(x))
    inside = zone[GUARD : GUARD + x.numel()].view(x.shape)
    inside.copy_(x)
    return inside


def _users(case: Case, arguments: Mapping[str, Any]) -> int:
    if "offsets" in arguments:
        return len(arguments["offsets"]) - 1
    return len(arguments[case.user[0]]) if case.user else 0


def _span(arguments: Mapping[str, Any], user: int) -> slice:
    start, stop = arguments["offsets"][user : user + 2].tolist()
    return slice(start, stop)


def _has_events(case: Case, arguments: Mapping[str, Any], user: int) -> bool:
    return not case.event or _span(arguments, user).start < _span(arguments, user).stop


def _only(case: Case, arguments: Mapping[str, Any], user: int) -> Arguments:
    """The call with that user alone."""
    own = dict(arguments)
    for name in case.user:
        if own[name] is not None:
            own[name] = own[name][user : user + 1]
    for name in case.event:
        if own[name] is not None:
            own[name] = own[name][_span(arguments, user)]
    if "offsets" in arguments:
        span = _span(arguments, user)
        own["offsets"] = arguments["offsets"].new_tensor([0, span.stop - span.start])
        if "max_len" in arguments:
            own["max_len"] = span.stop - span.start
    return own


def _poison(case: Case, arguments: Mapping[str, Any], user: int) -> Arguments:
    """The call with that user's numbers NaN (whole numbers: the largest that occurs)."""
    spoiled = dict(arguments)
    for name in (*case.event, *case.user):
        x = spoiled[name]
        if x is None or x.dtype == torch.bool or not x.numel():
            continue
        x = spoiled[name] = x.clone()
        x[_span(arguments, user) if name in case.event else user] = torch.nan if x.is_floating_point() else x.max()
    return spoiled


def _fresh(x: Tensor, *, graded: bool) -> Tensor:
    return x.detach().clone().requires_grad_(graded and x.is_floating_point())


class _Recorder(TorchDispatchMode):
    """The first call of each operator that is not torch's own: (operator, args, kwargs)."""

    OWN: Final = ("aten", "prim", "prims", "profiler", "mkldnn", "mkl", "inductor", "higher_order")

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Note it, then call it."""
        if func.namespace not in self.OWN:
            self.calls.setdefault(func.name(), (func, *tree_map_only(Tensor, Tensor.clone, (args, kwargs or {}))))
        return func(*args, **(kwargs or {}))
