"""The decreasing convex functions f of the theory: no margin in softplus, margin 1 in the hinge (paper Appendix B)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from localssl.errors import UsageError, unknown

_GRID = torch.linspace(-40, 40, 801, dtype=torch.float64)


@dataclass(frozen=True)
class Form:
    """A smooth decreasing convex f with its first two derivatives, each elementwise on float64 tensors.

    That it is so is tried on 801 points of [-40, 40], no more.

    Raises:
        UsageError: f is not convex or not decreasing there, or a derivative is not that of the function before it.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        for function, derivative, name in (
            (self.value, self.slope, "slope"),
            (self.slope, self.curvature, "curvature"),
        ):
            step = 1e-5
            found = (function(_GRID + step) - function(_GRID - step)) / (2 * step)
            given = derivative(_GRID)
            wrong = ~((found - given).abs() <= 1e-4 * (1 + given.abs()))  # a NaN is wrong
            if int(wrong.sum()) > 2:  # the curvature may jump where two pieces meet
                at = float(_GRID[wrong][0])
                raise UsageError(f"f={self.name!r}: its {name} at {at:g} is not the derivative of what it is given for")
        lowest, place = self.curvature(_GRID).min(0)
        if not float(lowest) >= -1e-12:
            raise UsageError(
                f"f={self.name!r} is not convex: f''({float(_GRID[place]):g}) = {float(lowest):.3g} < 0, so the "
                f"loss may have several minima over B, and no optimal B is defined; choose a convex f"
            )
        if not bool((self.slope(_GRID) <= 1e-12).all()):
            raise UsageError(f"f={self.name!r} is not decreasing; the theory needs f' <= 0")


def _softplus_slope(u: Tensor) -> Tensor:
    return -torch.sigmoid(-u)


def _softplus_curvature(u: Tensor) -> Tensor:
    return torch.sigmoid(u) * torch.sigmoid(-u)


SOFTPLUS = Form("softplus", lambda u: F.softplus(-u, threshold=40), _softplus_slope, _softplus_curvature)
LINEAR = Form("linear", lambda u: -u, lambda u: -torch.ones_like(u), torch.zeros_like)


@dataclass(frozen=True)
class Hinge:
    """max(0, 1 - u). Its derivative at the kink u = 1 is any number in [-1, 0]; away from it, -1 or 0."""

    name: str = "hinge"

    def value(self, u: Tensor) -> Tensor:
        """f(u)."""
        return F.relu(1 - u)

    def slope(self, u: Tensor) -> Tensor:
        """-1[u < 1], the plain derivative."""
        return -(u < 1).to(u.dtype)


HINGE = Hinge()
NAMES: dict[str, Form | Hinge] = {"softplus": SOFTPLUS, "hinge": HINGE, "linear": LINEAR}


def form(f: str | Form | Hinge) -> Form | Hinge:
    """The f of that name, or a ``Form`` of your own.

    Raises:
        UsageError: a name that is none of softplus, hinge, linear.
    """
    if isinstance(f, Form | Hinge):
        return f
    if not isinstance(f, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"f is a {type(f).__name__}; name one of {', '.join(NAMES)}, or give a theory.Form with its derivatives: "
            f"without f'' it cannot be seen whether f is convex and the optimal B unique"
        )
    if f not in NAMES:
        raise unknown("convex loss function f", str(f), NAMES)
    return NAMES[f]
