"""``rule.json``: a run's learning rule as data, with golden vectors of a small twin of its network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import localssl
from localssl import certificate
from localssl.certificate import Certificate
from localssl.certificate.cuts import layer_of
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.rulefile.ops import OPS
from localssl.rulefile.optimisers import described, moments
from localssl.rulefile.program import Program
from localssl.rulefile.reading import held, reads
from localssl.rulefile.rounding import kept
from localssl.rulefile.twin import BATCHES, images_of, in_floats, twin
from localssl.rulefile.vectors import Golden, grids
from localssl.runs.config import RunConfig
from localssl.runs.run import Run
from localssl.system.files import write_text

FORMAT, VERSION = "localssl rule", 1
WRITING = 2  # the version of a file whose programs write the weights themselves
EXPONENT = 8  # bits of one, the sign included: as of float32
BITS = {"32-true": 32, "64-true": 64, "bf16-mixed": 16}


@dataclass(frozen=True)
class Written:
    """What a rule.json holds, for those who have just written it: operations of a step, steps, and size in bytes.

    ``arithmetics``: the golden vectors', the last of which the operations are.
    """

    operations: int
    steps: int
    size: int
    arithmetics: tuple[str, ...]


def write(run: Run, path: Path) -> Written:
    """Write a run's learning rule as data.

    Raises:
        UsageError: the rule is not local on this network (with the certificate's reasons), its update needs something
            that a manifest does not have, or the network has no small twin.
    """
    with torch.random.fork_rng(), torch.enable_grad():
        found = manifest(run.config, run.learner())
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n"
    write_text(path, text)
    program = found["vectors"][-1]["programs"][0]
    operations = sum(len(stage["ops"]) for stage in program["stages"])
    return Written(operations, BATCHES, len(text.encode()), tuple(v["arithmetic"] for v in found["vectors"]))


def manifest(config: RunConfig, learner: Learner) -> dict[str, Any]:
    """The content of rule.json for a run of this configuration and its learner."""
    images, unrounded = images_of(config), dataclasses.replace(config, bits=None)

    def stepper(trial: Learner) -> Callable[[int], object]:
        return Golden(config if trial.engine == "integer" else unrounded, trial, images).step_on

    small = twin(learner.encoder, config, stepper)
    floats = small if config.bits is None else in_floats(small, config)
    found = certificate.certify(floats)
    if found.verdict != "local":
        raise UsageError(
            f"export --rule: {found.rule} is {found.verdict} ({'; '.join(found.reasons)}); a manifest says what a chip "
            f"does in place, localssl certify --rule {config.rule} says more"
        )
    cost, layer_costs = certificate.count(learner if config.bits is None else in_floats(learner, config))
    vectors, program = Golden(unrounded, floats, images).vectors()
    entries = [{"network": {**_network(floats), "images": images}, **vectors}]
    if config.bits is not None:
        vectors, program = Golden(config, small, images).vectors()
        entries.append({"network": {**_network(small), "images": images}, **vectors})
    return {
        "format": FORMAT,
        "version": VERSION if program.updates.keys().isdisjoint(program.buffers) else WRITING,
        "made by": f"localssl {localssl.__version__}",
        "rule": {
            "name": config.rule,
            "options": _plain(dataclasses.asdict(learner.rule)),
            "credit": learner.rule.credit,
            "engine": learner.engine,
            "samples": {"kind": type(small.inputs).__name__, "layout": _first(type(small.inputs).__doc__)},
        },
        "locality": {"verdict": found.verdict, "layers": found.distance, "updates": reads(found, program)},
        "network": _network(learner),
        "state": [entry for entry in _state(learner, config) if entry["name"] in vectors["state"]],
        "held": held(program, config.bits or BITS[config.precision]),
        "schedule": _schedule(program, config),
        "optimiser": described(config, learner),
        "counts": _counts(found, cost, layer_costs),
        "operations": OPS,
        "vectors": entries,
    }


def _network(learner: Learner) -> dict[str, Any]:
    blocks = [
        {
            "layers": [str(m) for m in block.modules() if not list(m.children())],
            "output": list(shape),
            "patch of the readout": patch,
        }
        for block, shape, patch in zip(learner.encoder.blocks, learner.output_shapes, learner.patches, strict=True)
    ]
    return {"image": list(learner.input_shape), "sample": list(_sample(learner)), "blocks": blocks}


def _sample(learner: Learner) -> tuple[int, ...]:
    return tuple(learner.inputs.shape(learner.input_shape))


def _state(learner: Learner, config: RunConfig) -> list[dict[str, Any]]:
    """The memory map of the run's own network: every synapse's words, one after the other, moments behind weights."""
    width = 64 if config.precision == "64-true" else 32
    trained = {name for name, p in learner.named_parameters() if p.requires_grad}
    found: list[dict[str, Any]] = []
    address = 0

    def add(name: str, of: str, layer: int, shape: Sequence[int], bits: int) -> None:
        nonlocal address
        words = int(torch.Size(shape).numel())
        entry = {"name": name, "of": of, "layer": layer, "shape": list(shape), "bits": bits, "address": address}
        found.append(entry)
        address += words

    shapes = moments(config, learner)
    whole = {} if config.bits is None else grids(learner)
    for name, value in kept(learner).items():
        of = "synapse" if name in trained else "fixed"
        bits = width if value.is_floating_point() else 64
        if config.bits is not None:
            of, bits = (of, config.bits) if name in whole else ("exponent", EXPONENT)
        add(name, of, layer_of(name, learner), value.shape, bits)
        if name in whole:
            found[-1]["exponent"] = whole[name][0]
        for moment, shape in shapes.get(name, {}).items():
            add(f"{name} {moment}", "optimiser", layer_of(name, learner), shape, EXPONENT if whole else width)
    return found


def _schedule(program: Program, config: RunConfig) -> dict[str, Any]:
    """When what may run: an update of a block needs the activity of all blocks up to ``after``, of all samples."""
    learning, writing = ([s for s in program.stages if s.kind == kind] for kind in ("learn", "write"))
    return {
        "images in a batch": config.batch_size,
        "learning rate": config.lr,
        "rates over the run": config.schedule,
        "order": [{"run": s.block} for s in program.stages if s.kind == "run"]
        + [{"learn": s.block, "after": s.after} for s in learning]
        + ([{"write": s.block, "after": s.after} for s in writing] or [{"step": "optimiser"}]),
    }


def _counts(found: Certificate, cost: certificate.Cost, layer_costs: Sequence[certificate.Cost]) -> dict[str, Any]:
    """Of one update and one sample, forward passes left out; as in the certificate."""

    def plain(c: certificate.Cost) -> dict[str, float]:
        return {"multiply-accumulates": c.operations, "bytes": c.bytes}

    layers = [{"layer": layer, **plain(c)} for layer, c in enumerate(layer_costs, start=1)]
    return {"all": plain(cost), "layers": layers, "twin": plain(found.cost)}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(options))


def _first(text: str | None) -> str:
    return (text or "").strip().splitlines()[0] if text else ""
