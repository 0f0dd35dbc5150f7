"""The checks. Each is a function of one bench that raises ``Failure`` with what it found, or ``Skip``."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn

from localssl.inputs import Inputs
from localssl.learner import Learner
from localssl.references import Reference
from localssl.rules import Batch, Rule, ScoreRule
from localssl.rules.base import PER_LAYER
from localssl.testing.bench import Bench, Feed, Skip, Update, of_layer, require, same, update
from localssl.testing.frozen import Frozen

TO_ROUNDING = 1e-8  # relative, in float64
STEP = 1e-6  # of numerical differentiation
DERIVATIVE = 1e-5  # how far a derivative may be from the difference quotient, over the gradient's length
DIFFERENTIATED = ("local", "backprop")  # credit assignments whose update is the gradient of the losses


@dataclass(frozen=True)
class Check:
    """A check.

    Args:
        run: raises ``Failure`` or ``Skip``.
        asked_of: the rules that it is asked of, in words.
        reason: why a rule is not asked; "" where it is.
    """

    run: Callable[[Bench], None]
    asked_of: str
    reason: Callable[[Rule], str] = lambda rule: ""

    @property
    def claim(self) -> str:
        """What holds for a rule that passes: the first line of the function's docstring."""
        return (self.run.__doc__ or "").splitlines()[0]


def encoders(bench: Bench) -> None:
    """One batch gives one finite loss per layer (or one in all) and an update of every weight; the views stay."""
    learner, feed = bench.learner(), bench.feed()
    a, b = feed.a.clone(), feed.b.clone()
    found = update(learner, feed)
    wanted = (len(learner.encoder.blocks) if bench.rule.credit in PER_LAYER else 1,)
    require(tuple(found.losses.shape) == wanted, f"losses are of shape {tuple(found.losses.shape)}, expected {wanted}")
    require(bool(found.losses.isfinite().all()), f"losses are {_shown(found.losses)}")
    require(same(a, feed.a) and same(b, feed.b), "the views were changed in place")
    lacking = [name for name, p in learner.named_parameters() if p.requires_grad and found.grads[name] is None]
    require(not lacking, f"no update of {_listed(lacking)}")
    blocks = [g for name, g in found.grads.items() if name.startswith("encoder.") and g is not None]
    require(any(bool(g.any()) for g in blocks), "the update of all blocks is zero")


def locality(bench: Bench) -> None:
    """Nothing from above changes a block's update, to the last bit, but what its declared references take from there.

    Blocks and projections above get other weights; outputs that are declared references keep their values.
    """
    _no_part_in_common(bench)
    count = len(bench.learner().encoder.blocks)
    for layer in range(count - 1):
        before, feed = bench.learner(), bench.feed()
        after = copy.deepcopy(before)
        _disturb(after, layer)
        kept = _sources(bench.rule, range(layer + 1), count) - set(range(layer + 1))
        torch.manual_seed(0)
        with torch.no_grad():
            outputs = before.encoder(before.enter(feed.a, feed.b, feed.negatives, feed.labels))
        for learner in (before, after):
            for source in kept:
                learner.encoder.blocks[source] = _Held(learner.encoder.blocks[source], outputs[source])
        one, other = update(before, feed), update(after, feed)
        for lower in range(layer + 1):
            changed = one.differences(other, of_layer(before, lower))
            held = f", though the references (blocks {sorted(s + 1 for s in kept)}) kept their values" if kept else ""
            require(
                not changed,
                f"other weights above block {layer + 1} change the update of block {lower + 1} "
                f"({_listed(changed)}){held}",
            )
            require(
                same(one.losses[lower], other.losses[lower]),
                f"other weights above block {layer + 1} change the loss of block {lower + 1}{held}",
            )


def references(bench: Bench) -> None:
    """No gradient reaches a reference, which is declared constant.

    The activities are leaves here. Score rules of the two views: dL/dz in closed form for f linear. All: a loss does
    not reach the activities of other layers than its own.
    """
    learner, feed, rule = bench.learner(), bench.feed(), bench.rule
    torch.manual_seed(0)
    given = learner.batch(feed.a, feed.b, feed.negatives, feed.labels)
    z = [h.detach().requires_grad_() for h in given.z]
    scores = isinstance(rule, ScoreRule) and type(learner.inputs) is Inputs
    linear = dataclasses.replace(rule, f="linear") if scores else rule  # pyright: ignore[reportCallIssue]
    losses = linear.losses(Batch(z, feed.negatives, feed.labels, [h.detach() for h in given.maps]), learner.parts)
    layers = range(len(z)) if rule.per_layer else [len(z) - 1]
    require(len(losses) == len(layers), f"{len(losses)} losses, expected {len(layers)}")
    for i, layer in enumerate(layers):
        grads: tuple[Tensor | None, ...] = (
            torch.autograd.grad(losses[i], z, retain_graph=True, allow_unused=True)
            if losses[i].requires_grad
            else (None,) * len(z)
        )
        for other, grad in enumerate(grads):
            reached = other != layer and grad is not None and bool(grad.any())
            require(not reached, f"the loss of block {layer + 1} has a gradient into block {other + 1}'s activity")
        if isinstance(linear, ScoreRule) and scores and feed.negatives is not None:
            expected = _linear_signal(linear, z, learner, i, layer, feed.negatives)
            off = _distance(grads[layer], expected)
            require(
                off < TO_ROUNDING,
                f"dL/dz of block {layer + 1} is not what its targets alone give for f linear "
                f"(off by {off:.1g} of its length): a gradient into the reference?",
            )


def _no_part_in_common(bench: Bench) -> None:
    """A part that is no layer's own, trained by the losses of several, carries what is above down at the next step."""
    learner, feed = bench.learner(), bench.feed()
    own = {name for layer in range(len(learner.encoder.blocks)) for name in of_layer(learner, layer)}
    common = {n: p for n, p in learner.named_parameters() if n not in own and p.requires_grad}
    if not common:
        return
    losses = learner.losses(feed.a, feed.b, feed.negatives, feed.labels)
    for name, parameter in common.items():
        grads = [torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)[0] for loss in losses]
        reached = [i + 1 for i, grad in enumerate(grads) if grad is not None and bool(grad.any())]
        require(len(reached) < 2, f"{name} is trained by the losses of blocks {reached}: give every layer its own")


def determinism(bench: Bench) -> None:
    """Under one seed of torch's random numbers the same batch gives the same losses and update, bit for bit.

    Random numbers of other sources (Python's, NumPy's, the clock's) are found by this; so is a rule that sets torch's
    seed itself, which would give every later batch the same views.
    """
    feed = bench.feed()
    first = update(bench.learner(), feed)
    for _ in range(3):
        again = update(bench.learner(), feed)
        require(
            same(first.losses, again.losses), "the same seed gives other losses: random numbers that are not torch's?"
        )
        changed = first.differences(again)
        require(
            not changed, f"the same seed gives another update of {_listed(changed)}: random numbers of another source?"
        )
    after: list[float] = []
    for seed in (0, 1):
        update(bench.learner(), feed, seed)
        after.append(float(torch.rand(())))
    require(after[0] != after[1], "the rule sets the seed of torch's random numbers, which the views are drawn from")


def permutation(bench: Bench) -> None:
    """The batch in another order, its negatives and labels carried along, gives the same losses and update.

    Where the inputs draw at random, what they made is put in another order instead, if image i of n is in their rows
    i, n + i, 2n + i, …
    """
    feed = bench.feed()
    order = torch.tensor([2, 0, 3, 1])
    drawn_early, drawn_late = _draws(bench, feed)
    if drawn_late:
        raise Skip("its losses draw at random, which no order can be carried along with")
    one = update(bench.learner(), feed)
    if not drawn_early:
        other = update(bench.learner(), feed.permuted(order))
    else:
        x = _inputs(bench, feed)
        _check_rows(bench, feed, x)
        n = len(feed.a)
        rows = torch.cat([order + start for start in range(0, len(x), n)])
        moved = feed.permuted(order)
        learner = bench.learner()
        losses, *_ = learner.credit.updates(learner.step_of(x[rows], moved.negatives, moved.labels))
        other = Update(losses, {name: p.grad for name, p in learner.named_parameters()})
    off = _distance(other.losses, one.losses)
    require(off < TO_ROUNDING, f"the losses of the images in another order are off by {off:.1g}: {_two(one, other)}")
    for part, names in _parts(one).items():
        whole, moved = (_together(u.grads[name] for name in names) for u in (one, other))
        off = _distance(moved, whole)
        require(off < TO_ROUNDING, f"the update of {part} is off by {off:.1g} for the images in another order")


def mean(bench: Bench) -> None:
    """The update does not grow with the batch: that of every image taken twice is about as long as that of once."""
    feed = bench.feed()
    ratios: list[float] = []
    for seed in range(5 if any(_draws(bench, feed)) else 1):
        lengths = [_length(update(bench.learner(), f, seed)) for f in (feed, feed.twice())]
        ratios.append(lengths[1] / max(lengths[0], 1e-300))
    ratio = statistics.median(ratios)
    require(
        0.55 < ratio < 1.7, f"with every image twice in the batch the update is {ratio:.2f} times as long: not a mean?"
    )


def dtype(bench: Bench) -> None:
    """Losses and updates are of the activities' type, float32 or float64, and no number in float64 passes float32."""
    losses: list[Tensor] = []
    for kind in (torch.float32, torch.float64):
        found = update(bench.learner().to(kind), bench.feed(kind))
        require(found.losses.dtype == kind, f"the losses of {kind} activities are {found.losses.dtype}")
        wrong = [name for name, g in found.grads.items() if g is not None and g.dtype != kind]
        require(not wrong, f"the update of {_listed(wrong)} is not {kind}")
        losses.append(found.losses.double())
    if not any(_draws(bench, bench.feed())):
        off = _distance(losses[0], losses[1])
        require(off < 1e-3, f"the losses in float32 and float64 are {off:.1g} apart")
    noise = torch.randn(bench.feed().a.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    moved = [
        update(bench.learner(), bench.feed().map(lambda view, size=size: view + size * noise)).losses
        for size in (0.0, 1e-11, 1e-3)
    ]
    deaf = [i + 1 for i, (at, near, far) in enumerate(zip(*moved, strict=True)) if at == near and at != far]
    require(not deaf, f"losses {deaf} in float64 do not see a change of 1e-11, but one of 1e-3: rounded to float32?")


def device(bench: Bench) -> None:
    """Everything that the rule makes is where the activities are: on the meta device, and on a GPU if there is one."""
    learner, feed = bench.learner(torch.float32).to("meta"), bench.feed(torch.float32)
    given = None if feed.labels is None else feed.labels.to("meta")
    valueless = ""
    try:
        with mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()):  # unknown to meta
            x = learner.enter(feed.a.to("meta"), feed.b.to("meta"), None, given)
            for losses in learner.credit.updates(learner.step_of(x, None, given)):
                place = losses.device
                require(place.type == "meta", f"the losses of activities on the meta device are on {place}")
    except (RuntimeError, NotImplementedError) as error:
        elsewhere = "expected device" in str(error) or "on the same device" in str(error)
        require(not elsewhere, f"a tensor is made on the CPU for activities elsewhere ({_line(error)})")
        valueless = f"it needs values, which the meta device has not ({_line(error)}), and there is no GPU"
    if valueless and not torch.cuda.is_available():
        raise Skip(valueless)
    if torch.cuda.is_available():
        there = dataclasses.replace(
            feed.map(lambda view: view.cuda()),
            negatives=None if feed.negatives is None else feed.negatives.cuda(),
            labels=None if feed.labels is None else feed.labels.cuda(),
        )
        found = update(bench.learner(torch.float32).cuda(), there)
        require(found.losses.is_cuda, "the losses of activities on a GPU are not there")
        if not any(_draws(bench, feed)):
            off = _distance(found.losses.cpu(), update(bench.learner(torch.float32), feed).losses)
            require(off < 1e-2, f"the losses on the GPU are {off:.1g} off those on the CPU")


def extremes(bench: Bench) -> None:
    """Losses and updates are finite for views a thousand times as large, and for black ones (float32)."""
    for factor, kind in ((1e3, "views × 1000"), (0.0, "views that are all zero")):
        found = update(bench.learner(torch.float32), bench.feed(torch.float32).map(lambda view, by=factor: by * view))
        require(bool(found.losses.isfinite().all()), f"{kind} give losses {_shown(found.losses)}")
        bad = [name for name, g in found.grads.items() if g is not None and not bool(g.isfinite().all())]
        require(not bad, f"{kind} give an update of {_listed(bad)} that is not finite")


def resume(bench: Bench) -> None:
    """Saved after two steps and loaded into a fresh learner, it takes the third and fourth as if never stopped."""
    feeds = [bench.feed(torch.float32, seed) for seed in range(4)]
    learner = bench.learner(torch.float32)
    optimizer = _optimizer(learner)
    torch.manual_seed(0)
    _train(learner, optimizer, feeds[:2])
    file = io.BytesIO()
    torch.save([learner.state_dict(), optimizer.state_dict(), torch.get_rng_state()], file)
    straight = _train(learner, optimizer, feeds[2:])
    file.seek(0)
    weights, state, random = torch.load(file, weights_only=True)
    fresh = bench.learner(torch.float32, other=1)
    fresh.load_state_dict(weights)
    optimizer = _optimizer(fresh)
    optimizer.load_state_dict(state)
    torch.set_rng_state(random)
    resumed = _train(fresh, optimizer, feeds[2:])
    advice = "something that changes is kept beside the learner's parameters and buffers?"
    for number, (one, other) in enumerate(zip(straight, resumed, strict=True), start=3):
        require(same(one, other), f"step {number} has other losses after a resume ({advice})")
    stays = fresh.state_dict()
    changed = [name for name, value in learner.state_dict().items() if not same(value, stays[name])]
    require(not changed, f"{_listed(changed)} differ after a resume ({advice})")


def differentiation(bench: Bench) -> None:
    """The update equals numerical differentiation of the losses, everything that the rule stops held at its value.

    Central differences in two directions per block and projection, in float64. Held are: what ``detach`` or ``.data``
    returned, what was computed under ``torch.no_grad``, and numbers read by ``item`` or ``float`` (see ``frozen.py``).
    """
    feed, learner = bench.feed(), bench.learner()
    grads = update(learner, feed).grads
    frozen = Frozen()

    def total(moved: Learner) -> float:
        at = copy.deepcopy(moved)  # with the buffers as they were
        torch.manual_seed(0)
        return float(frozen.run(lambda: at.losses(feed.a, feed.b, feed.negatives, feed.labels)).double().sum())

    scale = abs(total(learner)) + 1
    parts: dict[str, list[str]] = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(".".join(name.split(".")[:3]), []).append(name)
    generator = torch.Generator().manual_seed(3)
    for part, names in parts.items():
        gradient = {name: torch.zeros_like(p) if (g := grads[name]) is None else g for name, p in _of(learner, names)}
        length = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
        for _ in range(2):
            noise = {
                name: torch.randn(g.shape, generator=generator, dtype=torch.float64) for name, g in gradient.items()
            }
            size = math.sqrt(sum(float(v.square().sum()) for v in noise.values()))
            way = {name: v / size + (gradient[name] / length if length else 0) for name, v in noise.items()}
            expected = sum(float((gradient[name] * v).sum()) for name, v in way.items())
            bound = DERIVATIVE * length + 1e-8 * scale
            nearest = math.inf
            for step in (STEP, 10 * STEP, STEP / 10):  # a kink may lie in the way of one
                found = _quotient(learner, way, step, total)
                nearest = min(found, nearest, key=lambda value: abs(value - expected))
                if abs(nearest - expected) <= bound:
                    break
            ratio = f", ratio {expected / nearest:.4g}" if nearest else ""
            require(
                abs(nearest - expected) <= bound,
                f"the update of {part} has slope {expected:.6g} along a direction, the losses {nearest:.6g}{ratio}",
            )


def labels(bench: Bench) -> None:
    """Labels change nothing, and need not be there: the rule does not declare ``uses_labels``."""
    feed = bench.feed()
    assert feed.labels is not None
    one = update(bench.learner(), feed)
    for other, what in ((feed.labels.flip(0), "other labels change"), (None, "absent labels change")):
        found = update(bench.learner(), dataclasses.replace(feed, labels=other))
        changed = one.differences(found)
        require(same(one.losses, found.losses), f"{what} the losses, and uses_labels is not declared")
        require(not changed, f"{what} the update of {_listed(changed)}, and uses_labels is not declared")


def engines(bench: Bench) -> None:
    """The engine without autograd gives autograd's update, in both of its modes, wherever it takes the rule."""
    if (learner := bench.learner()).engine == "autograd":
        raise Skip(learner.engine_note or "")
    feed, want = bench.feed(), update(bench.learner(engine="autograd"), bench.feed())
    for engine in ("hebbian", "hebbian-lean"):
        found = update(bench.learner(engine=engine), feed)
        for name, gradient in want.grads.items():
            other = found.grads[name]
            require((other is None) == (gradient is None), f"engine {engine}: an update of {name}, or none, alone")
            if other is not None and gradient is not None:
                off = float((other - gradient).norm() / (gradient.norm() + 1e-12))
                require(off < TO_ROUNDING, f"engine {engine}: the update of {name} is off by {off:.1g}")


def _no_layers(rule: Rule) -> str:
    return "" if rule.credit in PER_LAYER else f"credit {rule.credit!r} has one loss for all blocks"


def _no_references(rule: Rule) -> str:
    return "" if getattr(rule, "references", {}) else "it declares no references"


def _no_factors(rule: Rule) -> str:
    return "" if isinstance(rule, ScoreRule) and rule.credit == "local" else "its update has no three factors"


def _no_derivative(rule: Rule) -> str:
    return "" if rule.credit in DIFFERENTIATED else f"the update of credit {rule.credit!r} is no gradient of the losses"


def _labelled(rule: Rule) -> str:
    return "it declares uses_labels" if rule.uses_labels else ""


CHECKS: Mapping[str, Check] = {
    "encoders": Check(encoders, "all"),
    "determinism": Check(determinism, "all"),
    "locality": Check(locality, "rules with one loss per layer", _no_layers),
    "references": Check(references, "rules that declare `references`", _no_references),
    "permutation": Check(permutation, "all, but losses that draw at random"),
    "mean": Check(mean, "all"),
    "labels": Check(labels, "rules that do not declare `uses_labels`", _labelled),
    "dtype": Check(dtype, "all"),
    "device": Check(device, "all"),
    "extremes": Check(extremes, "all"),
    "resume": Check(resume, "all"),
    "engines": Check(engines, "score rules whose credit is `local`", _no_factors),
    "differentiation": Check(differentiation, "credit `local` and `backprop`", _no_derivative),
}


class _Held(nn.Module):
    """A block whose output stays at a value while its graph stays whole: held + (z - z), and z - z is exactly 0.

    A gradient that leaked down from above still passes, through the changed weights.
    """

    def __init__(self, block: nn.Module, held: Tensor) -> None:
        super().__init__()
        self.block, self.held = block, held

    def forward(self, x: Tensor) -> Tensor:
        """The value; the gradient is the block's."""
        z = self.block(x)
        return self.held + (z - z.detach())


def _sources(rule: Rule, layers: range, count: int) -> set[int]:
    declared: Mapping[str, Reference] = getattr(rule, "references", {})
    return {reference.source(layer, count) for reference in declared.values() for layer in layers}


@torch.no_grad()
def _disturb(learner: Learner, above: int) -> None:
    """New weights for every block above and for its projections."""
    generator = torch.Generator().manual_seed(99)
    names = [name for layer in range(above + 1, len(learner.encoder.blocks)) for name in of_layer(learner, layer)]
    for _, parameter in _of(learner, names):
        parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def _linear_signal(
    rule: ScoreRule, z: list[Tensor], learner: Learner, place: int, layer: int, negatives: Tensor
) -> Tensor:
    """dL/dz of a score rule with f linear: every sample as a positive and as a negative; nothing as a reference."""
    total = len(z[layer])
    samples = torch.arange(total)
    positives = (samples + total // 2) % total
    expected = torch.zeros_like(z[layer])
    with torch.no_grad():
        for key, reference in rule.references.items():
            g = learner.parts[key][place](z[reference.source(layer, len(z))]) / total
            expected.index_add_(0, positives, -g)
            expected.index_add_(0, positives[negatives], g)
    return expected


def _inputs(bench: Bench, feed: Feed) -> Tensor:
    learner = bench.learner()
    torch.manual_seed(0)
    return learner.enter(feed.a, feed.b, feed.negatives, feed.labels)


def _draws(bench: Bench, feed: Feed) -> tuple[bool, bool]:
    """Whether the inputs, and the losses, take torch's random numbers."""
    learner = bench.learner()
    torch.manual_seed(0)
    states = [torch.get_rng_state()]
    x = learner.enter(feed.a, feed.b, feed.negatives, feed.labels)
    states.append(torch.get_rng_state())
    for _ in learner.credit.updates(learner.step_of(x, feed.negatives, feed.labels)):
        pass
    states.append(torch.get_rng_state())
    return not torch.equal(states[0], states[1]), not torch.equal(states[1], states[2])


def _check_rows(bench: Bench, feed: Feed, x: Tensor) -> None:
    """Skip unless image i of n is in rows i, n + i, 2n + i, … of the inputs."""
    n = len(feed.a)
    for i in range(n):
        other = feed.map(lambda view, i=i: torch.cat((view[:i], view[i : i + 1] + 1, view[i + 1 :])))
        changed = (_inputs(bench, other) != x).flatten(1).any(1)
        if len(x) % n or not bool(changed[i::n].all()):
            raise Skip("its inputs draw at random and are not laid out by image")


def _parts(found: Update) -> dict[str, list[str]]:
    """Names of the parameters that have a gradient, by block and projection."""
    parts: dict[str, list[str]] = {}
    for name, grad in found.grads.items():
        if grad is not None:
            parts.setdefault(".".join(name.split(".")[:3]), []).append(name)
    return parts


def _together(grads: Iterable[Tensor | None]) -> Tensor:
    return torch.cat([torch.zeros(0) if grad is None else grad.flatten() for grad in grads])


def _optimizer(learner: Learner) -> torch.optim.Optimizer:
    lr = learner.rule.lr or 1e-3
    decay = learner.rule.weight_decay or 0.0
    if learner.rule.optimizer in ("sgd", "plain-sgd"):
        momentum = 0.9 if learner.rule.optimizer == "sgd" else 0.0
        return torch.optim.SGD(learner.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    return torch.optim.AdamW(learner.parameters(), lr=lr, weight_decay=decay)


def _train(learner: Learner, optimizer: torch.optim.Optimizer, feeds: list[Feed]) -> list[Tensor]:
    found: list[Tensor] = []
    for feed in feeds:
        optimizer.zero_grad()
        for losses in learner.updates(feed.a, feed.b, feed.negatives, feed.labels):
            optimizer.step()
            optimizer.zero_grad()
            found.append(losses.clone())
    return found


def _of(learner: Learner, names: list[str]) -> list[tuple[str, Tensor]]:
    return [(name, learner.get_parameter(name)) for name in names]


@torch.no_grad()
def _quotient(learner: Learner, way: dict[str, Tensor], step: float, total: Callable[[Learner], float]) -> float:
    """The central difference quotient of the losses along a direction."""
    ends: list[float] = []
    for sign in (1, -1):
        moved = copy.deepcopy(learner)
        for name, direction in way.items():
            moved.get_parameter(name).add_(sign * step * direction)
        with torch.enable_grad():
            ends.append(total(moved))
    return (ends[0] - ends[1]) / (2 * step)


def _length(found: Update) -> float:
    grads = [g for name, g in found.grads.items() if name.startswith("encoder.") and g is not None]
    return math.sqrt(sum(float(g.square().sum()) for g in grads))


def _distance(one: Tensor | None, other: Tensor | None) -> float:
    """Largest difference over the largest number of ``other``; 0 where both are missing or zero."""
    if one is None or other is None:
        present = one if other is None else other
        return 0.0 if present is None or not bool(present.any()) else math.inf
    if one.shape != other.shape:
        return math.inf
    size = float(other.detach().abs().max()) if other.numel() else 0.0
    off = float((one - other).detach().abs().max()) if other.numel() else 0.0
    return off / size if size else (math.inf if off > 1e-12 else 0.0)


def _two(one: Update, other: Update) -> str:
    return f"{_shown(other.losses)} instead of {_shown(one.losses)}"


def _shown(values: Tensor) -> str:
    return str([float(f"{float(value):.6g}") for value in values])


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _line(error: BaseException) -> str:
    return textwrap.shorten(str(error), 80, placeholder=" …")
