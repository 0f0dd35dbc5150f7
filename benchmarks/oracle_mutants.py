"""Does a test notice an oracle that is one per cent off? Of every rule's, once in its losses, once in its gradients.

    python benchmarks/oracle_mutants.py --out benchmarks/results/oracle_mutants.json

Every test that asks a rule's oracle is run again with that oracle's losses, or all its gradients, times 1.01, until one
of them fails; it must pass a second time as it is, or it says nothing. Status 1 where no test fails for some rule. The
oracles are the independent derivations that the library is compared with: what no test notices is not compared.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shared import write

from localssl import oracle

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("oracle", "rules_credit", "rules_end_to_end", "rules_goodness", "rules_illing", "rules_peers", "optimum")
WHAT = ("losses", "gradients")
FACTOR = 1.01


def scaled(value: Any) -> Any:
    """Numbers times ``FACTOR``, in lists and dicts, too."""
    if isinstance(value, dict):
        return {key: scaled(one) for key, one in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [scaled(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return value * FACTOR


class Mutants:
    """A plugin of pytest: what was noticed, by which test."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.wrong: tuple[str, str] | None = None
        self.noticed: dict[tuple[str, str], str] = {}
        table = oracle._REFERENCES  # pyright: ignore[reportPrivateUsage]
        for name, function in table.items():
            table[name] = self.watched(name, function)

    def watched(self, name: str, function: oracle.Reference) -> oracle.Reference:
        """An oracle that notes that it was asked, and is wrong where it shall be."""

        @functools.wraps(function)
        def answer(*given: Any, **options: Any) -> oracle.Result:
            self.asked.add(name)
            result = function(*given, **options)
            if self.wrong == (name, "losses"):
                return replace(result, losses=scaled(result.losses))
            if self.wrong == (name, "gradients"):
                grads = {key: scaled(getattr(result, key)) for key in ("block_grads", "projection_grads")}
                return replace(result, **grads)
            return result

        answer.keywords = getattr(function, "keywords", {})  # what a partial has chosen is no option
        return answer

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """A test, and again with every oracle that it asked wrong."""
        self.asked.clear()
        yield
        left = [(name, what) for name in sorted(self.asked) for what in WHAT if (name, what) not in self.noticed]
        if left and self.passes(item):
            for wrong in left:
                self.wrong = wrong
                if not self.passes(item):
                    self.noticed[wrong] = item.nodeid
                self.wrong = None

    def passes(self, item: pytest.Item) -> bool:
        """Whether a test passes once more."""
        try:
            item.runtest()
        except Exception:
            return False
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    mutants = Mutants()
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS]
    status = pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", "-m", "", *files], plugins=[mutants])
    rows = [
        {"rule": name, "what": what, "noticed by": mutants.noticed.get((name, what))}
        for name in oracle.names()
        for what in WHAT
    ]
    missed = [row for row in rows if row["noticed by"] is None]
    write(arguments.out, 1, factor=FACTOR, rows=rows)
    print(f"{len(rows) - len(missed)} of {len(rows)} wrong oracles were noticed; not: {missed}")
    sys.exit(1 if status or missed else 0)


if __name__ == "__main__":
    main()
