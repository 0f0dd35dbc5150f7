"""What a traced update means: every thing that ΔW or ΔB read gets a name, and a reason where a local rule may not."""

from __future__ import annotations

from dataclasses import dataclass

from localssl.certificate.cuts import World, layer_of
from localssl.certificate.tracing import Trace
from localssl.learner import Learner

TRANSPORT = "weight transport"
GRADIENT = "gradient through a layer above"
ERROR = "error of a layer above"
LABELS = "labels"
BATCH = "batch statistics"
SYNAPSE = "another synapse's weight"
INSIDE = "gradient inside a block"
REASONS = (TRANSPORT, GRADIENT, ERROR, LABELS, BATCH, SYNAPSE, INSIDE)

READS = (  # what may be read, then what may not, in the order in which they are shown
    *("pre", "post", "gate", "modulator", "own B", "own weight", "other samples", "feedback", "from below"),
    *("labels", "batch", "W above", "gate above", "B above", "W below", "B below"),
    *("W of the block", "gate in the block", "W in the block", "another part of B", "other neurons' weights"),
)

MANY = 0.4  # share of the other samples; a pair has its partner, its negatives and those it is a negative of


@dataclass(frozen=True)
class Read:
    """One thing that the update of one parameter read.

    Args:
        target: the parameter's name.
        layer: its layer, from 1.
        of: "ΔW" of a block, "ΔB" of a projection.
        what: one of ``READS``.
        source: what was read, with its layer, e.g. "W^3", "z^3".
        distance: layers between the two.
        reason: why a local rule may not read it, one of ``REASONS``; "" where it may.
        evidence: what the finding rests on, in words.
    """

    target: str
    layer: int
    of: str
    what: str
    source: str
    distance: int
    reason: str = ""
    evidence: str = "with another value of it the update is another"


def read(trace: Trace, learner: Learner) -> list[Read]:
    """Everything that was read, parameter by parameter."""
    return [r for target in trace.changed for r in _of(target, trace, learner)]


def _of(target: str, trace: Trace, learner: Learner) -> list[Read]:
    place = _Place(target, trace, learner)
    found: dict[tuple[str, str, str], Read] = {}
    for world, elsewhere in trace.changed[target].items():
        named = place.name(world, elsewhere)
        if named is None:
            continue
        what, reason = named
        source, layer = _source(world, learner)
        away = 0 if layer is None else abs(layer - place.layer)
        evidence = Read.evidence + _uses(world, trace)
        if world in trace.escaped:
            evidence = f"left torch as a number ({trace.escaped[world]}), not followed further"
        found.setdefault(
            (what, source, reason), Read(target, place.layer, place.of, what, source, away, reason, evidence)
        )
        if what == "W above" and any(backward for _, backward in trace.used.get(world.name, ())):
            down = Read(target, place.layer, place.of, what, source, away, GRADIENT, evidence)
            found.setdefault((what, source, GRADIENT), down)  # also where there is no derivative to be read
    share = trace.interacting[target]
    if share > 0:
        reason = BATCH if min(share, trace.far.get(target, 1.0)) > MANY else ""
        mixers = ", ".join(f"{kind} in block {number}" for kind, number in trace.crossing)
        evidence = f"interacts with {share:.0%} of the other samples tried"
        evidence += f", {trace.far[target]:.0%} in a larger batch" if target in trace.far else ""
        evidence += f"; {mixers}" if mixers else ""
        what = "batch" if reason else "other samples"
        found[what, what, reason] = Read(target, place.layer, place.of, what, what, 0, reason, evidence)
    return list(found.values())


class _Place:
    """Where a parameter stands, seen from which everything read gets its name."""

    def __init__(self, target: str, trace: Trace, learner: Learner) -> None:
        self.target, self.trace = target, trace
        self.layer = layer_of(target, learner)
        self.of = "ΔW" if target.startswith("encoder.") else "ΔB"
        self.module = target.rpartition(".")[0]
        self.above = _above(self.module, trace)

    def name(self, world: World, elsewhere: bool) -> tuple[str, str] | None:
        """What it read in that world, and why it may not ("": it may); None for nothing worth a name."""
        if world.kind == "modulator":
            return "modulator", ""
        if world.kind == "labels":
            return "labels", LABELS
        if world.kind == "activity":
            return self._activity(world.layer), ""
        if world.kind == "gate":
            return self._gate(world)
        if world.kind == "way down":  # a head's transpose
            return ("B above", TRANSPORT) if self.of == "ΔW" and world.layer > self.layer else None
        return self._weight(world, elsewhere)

    def _activity(self, layer: int) -> str:
        if layer == self.layer:
            return "post"
        if layer > self.layer:
            return "feedback"
        return "pre" if layer == self.layer - 1 else "from below"

    def _gate(self, world: World) -> tuple[str, str] | None:
        if world.layer > self.layer:
            return "gate above", GRADIENT
        if world.layer < self.layer:
            return "from below", ""
        if self.of == "ΔB" or world.name == self.module:
            return "gate", ""
        return ("gate in the block", INSIDE) if world.name in self.above else ("pre", "")

    def _weight(self, world: World, elsewhere: bool) -> tuple[str, str] | None:
        module = world.name.rpartition(".")[0]
        if module == self.module and (world.kind == "weight" or world.name == self.target):
            if world.rows is None:
                return ("own weight", "") if world.kind == "weight" else None  # of a part: its own prediction
            return ("other neurons' weights", SYNAPSE) if elsewhere else None
        if world.rows is not None:
            return None
        if world.layer > self.layer:
            return ("W above", TRANSPORT) if world.kind == "weight" else ("B above", ERROR)
        if world.layer < self.layer:
            return ("W below" if world.kind == "weight" else "B below"), SYNAPSE
        if self.of == "ΔW" and world.kind == "part":
            return "own B", ""
        if self.of == "ΔW":
            return ("W in the block", INSIDE) if module in self.above else ("W of the block", SYNAPSE)
        if world.kind == "part" and self._upstream(world):
            return "pre", ""
        return ("W of the block" if world.kind == "weight" else "another part of B"), SYNAPSE

    def _upstream(self, world: World) -> bool:
        """Whether a part's value comes together with the target on the way up: it is read as what precedes it."""
        return self.target in self.trace.order.get(world, set())


def _above(module: str, trace: Trace) -> set[str]:
    """Layers with weights that a module's drive comes to in its own block, one through the other."""
    found, left = set[str](), [module]
    while left:
        at = left.pop()
        names = {n for w, met in trace.order.items() if (w.kind, w.name) == ("gate", at) for n in met}
        new = {n.rpartition(".")[0] for n in names if n.startswith("encoder.")} - found - {module}
        found |= new
        left += new
    return found


def _source(world: World, learner: Learner) -> tuple[str, int | None]:
    if world.kind in ("modulator", "labels"):
        return world.kind, None
    if world.kind == "activity":
        return f"z^{world.layer}" if world.layer else "x", world.layer
    if world.kind == "gate":
        return f"u^{world.layer}", world.layer
    if world.kind == "weight":
        letter = "b" if world.name.endswith("bias") else "W"
        several = len({n.rpartition(".")[0] for n, _ in learner.encoder.blocks[world.layer - 1].named_parameters()}) > 1
        return f"{letter}^{world.layer}" + (f" ({world.name.split('.', 3)[-1]})" if several else ""), world.layer
    key = world.name.split(".")[1]
    rest = world.name.split(".", 3)[-1]
    return f"{key}^{world.layer}" + ("" if rest == "weight" else f" ({rest})"), world.layer


def _uses(world: World, trace: Trace) -> str:
    """The operations that read a weight outside of its own forward pass."""
    if world.kind != "weight":
        return ""
    ops = sorted({f"{name}{' (backward)' if back else ''}" for name, back in trace.used.get(world.name, set())})
    return f"; read by {', '.join(ops)}" if ops else ""
