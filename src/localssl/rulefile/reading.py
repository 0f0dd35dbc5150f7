"""Where and when a program reads what the certificate says that an update reads, and what it keeps until then."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from localssl.certificate import Certificate, Read
from localssl.rulefile.program import Program, Stage


def reads(certificate: Certificate, program: Program) -> list[dict[str, Any]]:
    """By update, everything that it reads: what, whose, which arrays these are, and the operations that read them.

    Operations of the update's own cone, after all blocks have run; of a drive whose gate is read from what it made of
    its activity, those that read the activity.
    """
    found: list[dict[str, Any]] = []
    for target, value in program.updates.items():
        own = [r for r in certificate.reads if r.target == target]
        if own:
            listed = [_read(r, program, target) for r in own]
            found.append({"update": target, "of": own[0].of, "layer": own[0].layer, "array": value, "reads": listed})
    return found


def held(program: Program, bits: int) -> list[dict[str, Any]]:
    """The arrays that one block's run leaves for updates: a unit's, or a sample's state until then.

    Args:
        program: of which.
        bits: of a number that is no index and no yes or no.
    """
    made = {op.out: stage.block for stage in program.stages if stage.kind == "run" for op in stage.ops}
    wanted: dict[str, list[int]] = {}
    for stage in program.stages:
        if stage.kind == "learn":
            for name in dict.fromkeys(name for op in stage.ops for name in op.reads if name in made or name == "x"):
                wanted.setdefault(name, []).append(stage.block)
    signals: dict[str, list[str]] = {}
    for signal, name in program.signals.items():
        signals.setdefault(name, []).append(signal)
    return [
        {
            "array": name,
            "signal": signals.get(name, []),
            "made by block": made.get(name, 0),
            "read by updates of blocks": blocks,
            "shape of a sample": list(program.values[name].shape[1:]),
            "bits": program.bits.get(name) or _bits(program.values[name], bits),
        }
        for name, blocks in wanted.items()
        if program.values[name].ndim  # exponents, of whole numbers, are no unit's
    ]


def _bits(value: Tensor, bits: int) -> int:
    if value.is_floating_point():
        return bits
    value = value.long()
    return int(bool((value < 0).any())) + max(1, math.ceil(math.log2(int(value.abs().max()) + 1)))


def _read(read: Read, program: Program, target: str) -> dict[str, Any]:
    arrays = _arrays(read, program, target)
    at = _at(arrays, program, target)
    if not at and read.what == "gate":
        at = _at([program.signals[s] for s in (f"z^{read.layer}",) if s in program.signals], program, target)
    return {"what": read.what, "source": read.source, "layers away": read.distance, "arrays": arrays, "ops": at}


def _arrays(read: Read, program: Program, target: str) -> list[str]:
    """The arrays behind a source; none where it is no array of its own (other samples are rows of the others)."""
    if read.what == "modulator":
        return program.modulators[target]
    if read.source == "x":
        return ["x"]
    if read.source in program.signals:
        return [program.signals[read.source]]
    name, _, layer = read.source.split(" ")[0].partition("^")
    states = [s for s, value in program.values.items() if value.ndim and " " not in s]  # no exponents, no random words
    if name in ("W", "b") and layer:
        return [s for s in states if s.startswith(f"encoder.blocks.{int(layer) - 1}.")]
    if not layer:
        return []
    own = f"projections.{name}.{int(layer) - 1}."
    return [s for s in states if s.startswith(own)] or [s for s in states if s.startswith(f"projections.{name}.")]


def _at(arrays: Iterable[str], program: Program, target: str) -> list[str]:
    """Operations of an update that read one of these arrays, or what a run made of it before the next signal."""
    cone = program.cone(target)
    seen = set(arrays)
    stops = set(program.signals.values()) - seen
    for op in _ops(program, "run"):
        if (op.out not in stops or op.op == "reshape") and seen & set(op.reads):
            seen.add(op.out)
    return [op.out for op in _ops(program, "learn") if op.out in cone and seen & set(op.reads)]


def _ops(program: Program, kind: str) -> list[Any]:
    stages: list[Stage] = [stage for stage in program.stages if stage.kind == kind]
    return [op for stage in stages for op in stage.ops]
