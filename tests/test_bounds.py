"""The lower bounds that ``make test-lower`` installs are all that the project declares."""

from __future__ import annotations

import pytest

from .lower_bounds import constraints, declared


def test_every_requirement_has_a_lower_bound() -> None:
    lines = constraints(declared())
    assert len(lines) == len(declared()) - 1  # the extra that names another one
    assert any(line.startswith("torch==") for line in lines)
    assert any(line.startswith("onnxscript==") for line in lines)


@pytest.mark.parametrize("requirement", ["numpy", "numpy>=2.0,<3", "numpy==2.0", "numpy~=2.0"])
def test_other_bounds_are_refused(requirement: str) -> None:
    with pytest.raises(ValueError, match="no plain lower bound"):
        constraints([requirement])
