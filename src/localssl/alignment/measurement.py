"""The instrument: every rule's weight gradients against a reference's, one forward pass a batch for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from localssl import readout
from localssl import rules as registry
from localssl.alignment import references
from localssl.alignment.fitting import fit_projections
from localssl.alignment.quantities import LayerAlignment, Products, products, summarise
from localssl.alignment.signals import Gradients, Pair, Signals, shared, to_pair
from localssl.blocks import black_boxes
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.inputs import Inputs
from localssl.learner import Learner
from localssl.rules.base import Rule

RuleLike = str | Rule | Learner


@torch.enable_grad()
def measure(
    encoder: Encoder,
    rules: RuleLike | Sequence[RuleLike] | Mapping[str, RuleLike],
    data: Iterable[Sequence[Tensor | None]],
    reference: str | Learner = "own",
    *,
    patches: readout.Patches = None,
    fit: Iterable[Sequence[Tensor | None]] | None = None,
) -> list[LayerAlignment]:
    """Alignment of rules with end-to-end backpropagation at the encoder's weights, per block and parameter.

    Args:
        encoder: the weights to measure at; unchanged (batch normalisation in training mode would count the passes).
        rules: one or several; a mapping names them. A ``Learner`` on this encoder brings its own projections; for a
            rule or a rule's name they are fitted on ``fit`` at the frozen encoder, from a fixed start and for a fixed
            number of passes (``fit_projections``).
        data: batches (view_a, view_b[, negatives[, labels]]): views (n, C, H, W), negatives (2n,) indices into the
            stacked positives, labels (n,). Rules and reference share all of them; without negatives the next sample,
            or one random draw a batch where a rule draws at random.
        reference: "own": backpropagation of the rule's own last-layer loss, with its own readout, B^L and gates
            (``clapp++both``: the sum of its two). "bp-clapp++": with the rule's own B^L where its last layer has one
            averaged score of its own, else with B^L fitted on ``fit``. "bp-infonce": its head fitted on ``fit``. Or an
            end-to-end ``Learner`` on this encoder. The rows say which it was.
        patches: for rules given by name, as in ``Learner``.
        fit: batches (of training images) on which missing projections are fitted.

    The gradients of all batches are kept until the end: batches × (rules + references) times the encoder's weights.

    Returns:
        For each rule, block, parameter ("weights": all of the block's but biases, together; then each by name) and
        quantity a row with mean, interval and null; see ``LayerAlignment``.

    Raises:
        UsageError: no batch, or one of a wrong shape; an unknown rule or reference; projections to be fitted and no
            ``fit``; a learner of another encoder; gradients that are not the same when computed twice.
    """
    if not isinstance(encoder, Encoder):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"measure takes an Encoder, got a {type(encoder).__name__}; see Encoder.from_blocks")
    if not any(p.requires_grad for p in encoder.parameters()):
        raise UsageError("no weight of the encoder requires a gradient; call encoder.requires_grad_(True) first")
    if boxes := black_boxes(encoder.blocks):
        number, box = boxes[0]
        raise UsageError(
            f"alignment compares with backpropagation, and black box {box.name!r} in block {number} has no derivative; "
            f"measure a differentiable twin"
        )
    batches = iter(data)
    first = next(batches, None)
    if first is None:
        raise UsageError("alignment needs at least one batch of views")
    fitting = None if fit is None else list(fit)
    learners = _learners(encoder, rules, to_pair(first), patches, fitting)
    memo: dict[str, references.Against] = {}
    against = {name: references.choose(learner, reference, fitting, memo) for name, learner in learners.items()}
    kept: dict[tuple[str, str], list[Gradients]] = {}
    for number, batch in enumerate(chain([first], batches)):
        everyone = [*learners.values(), *(a.learner for a in against.values())]
        pair = shared(everyone, batch)
        samples = {learner.inputs: learner.enter(*pair) for learner in everyone}
        found = _gradients(encoder, pair, samples, learners, against)
        _finite(found, number + 1)
        if number == 0:
            _guard(found, _gradients(encoder, pair, samples, learners, against))
        for place, gradients in found.items():
            kept.setdefault(place, []).append(gradients)
    rows: list[LayerAlignment] = []
    for name in learners:
        mine, theirs = kept[name, "rule"], kept[name, "reference"]
        for block in range(len(encoder.blocks)):
            for parameter, found in _parts(mine, theirs, block):
                for quantity, values in summarise(found).items():
                    mean, low, high, batches_used, null = values
                    rows.append(
                        LayerAlignment(
                            rule=name,
                            reference=against[name].name,
                            block=block + 1,
                            parameter=parameter,
                            quantity=quantity,
                            mean=mean,
                            low=low,
                            high=high,
                            batches=batches_used,
                            null=null,
                        )
                    )
    return rows


def _learners(
    encoder: Encoder,
    given: RuleLike | Sequence[RuleLike] | Mapping[str, RuleLike],
    first: Pair,
    patches: readout.Patches,
    fit: Sequence[Sequence[Tensor | None]] | None,
) -> dict[str, Learner]:
    """The learners by name, those that were given as rules with fitted projections."""
    if isinstance(given, str | Rule | Learner):
        given = [given]
    if not isinstance(given, Sequence | Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"measure takes rules, their names or learners, got {given!r}")
    named = dict(given) if isinstance(given, Mapping) else {_name(rule): rule for rule in given}
    if not named or (not isinstance(given, Mapping) and len(named) < len(given)):
        raise UsageError("measure takes one rule or several of different names; name like ones by a mapping")
    result: dict[str, Learner] = {}
    for name, rule in named.items():
        if isinstance(rule, Learner):
            if rule.encoder is not encoder:
                raise UsageError(f"the learner of {name!r} has another encoder; build it on the one that is measured")
            result[name] = rule
            continue
        built = registry.get(rule) if isinstance(rule, str) else rule
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same start every time
            learner = Learner(encoder, built, first.view_a.shape[1:], patches)
        if next(learner.projections.parameters(), None) is not None:
            if fit is None:
                raise UsageError(
                    f"{name!r} was given without projections: give a Learner that has trained them, "
                    f"or fit=[...], batches of training images to fit them on"
                )
            fit_projections(learner, fit)
        result[name] = learner
    return result


def _name(rule: RuleLike) -> str:
    if isinstance(rule, str):
        return rule
    found = rule.rule if isinstance(rule, Learner) else rule
    if not isinstance(found, Rule):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"measure takes rules, their names or learners, got {found!r}")
    return references.name_of(found)


def _gradients(
    encoder: Encoder,
    pair: Pair,
    samples: Mapping[Inputs, Tensor],
    learners: Mapping[str, Learner],
    against: Mapping[str, references.Against],
) -> dict[tuple[str, str], Gradients]:
    """Every rule's and its reference's gradients of one batch, from one forward pass of each kind of inputs."""
    signals = {inputs: Signals(encoder, pair, x) for inputs, x in samples.items()}
    computed: dict[int, Gradients] = {}  # references that rules share are backpropagated once
    found: dict[tuple[str, str], Gradients] = {}
    for name, learner in learners.items():
        found[name, "rule"] = signals[learner.inputs].of_rule(learner)
        other = against[name].learner
        if id(other) not in computed:
            computed[id(other)] = signals[other.inputs].of_last_loss(other)
        found[name, "reference"] = computed[id(other)]
    return found


def _parts(mine: Sequence[Gradients], theirs: Sequence[Gradients], block: int) -> Iterator[tuple[str, Products]]:
    """The products of a block's weights together, then of every parameter."""
    found = {
        name: products([g[block][name] for g in mine], [g[block][name] for g in theirs]) for name in mine[0][block]
    }
    weights = [part for name, part in found.items() if mine[0][block][name].ndim > 1]
    if weights:
        whole = weights[0]
        for part in weights[1:]:
            whole = whole + part
        yield "weights", whole
    yield from found.items()


def _finite(found: Mapping[tuple[str, str], Gradients], batch: int) -> None:
    """Refuse gradients that are NaN or infinite: left out as zero ones they would go unseen."""
    for (rule, what), gradients in found.items():
        if not all(bool(g.isfinite().all()) for block in gradients for g in block.values()):
            raise UsageError(f"the {what}'s gradients for {rule!r} are not finite in batch {batch}; look at its views")


def _guard(once: Mapping[tuple[str, str], Gradients], again: Mapping[tuple[str, str], Gradients]) -> None:
    """Refuse gradients that are not the same when computed twice: on the CPU to the bit, elsewhere to 1e-5."""
    for place, gradients in once.items():
        for block, parameters in enumerate(gradients):
            for name, a in parameters.items():
                b = again[place][block][name]
                allowed = 0.0 if a.device.type == "cpu" else 1e-5 * float(torch.linalg.vector_norm(a))
                if not float((a - b).abs().max()) <= allowed:
                    raise UsageError(
                        "gradients differ when computed twice on the same batch: a block or the rule draws random "
                        "numbers (dropout?); call eval() on the learner or the encoder first"
                    )
