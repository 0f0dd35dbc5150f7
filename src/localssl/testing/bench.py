"""Where rules are checked: three small networks, a batch, and one update of the one on the other."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from localssl import encoders, rules
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.rules import Rule

NETWORKS = ("vgg", "flat", "mlp")  # convolutions with pools, convolutions without, linear layers; three blocks each
SHAPES = ((1, 8, 8), (3, 8, 8), (1, 16, 16), (3, 32, 32), (1, 64, 64), (3, 64, 64))  # the first that a rule takes
WIDTHS = (9, 11, 8)
SEEDS = 20  # of weights, tried until no block is dead
DEAD = 1e-6  # length of an update, over that of the longest one
IMAGES = 4
GAIN = 1.5  # on all weights: away from where every hinge is active and every loss flat


class CheckFailed(AssertionError):
    """A rule fails a check.

    Attributes:
        rule: its name.
        check: the check's name, a key of ``localssl.testing.CHECKS``.
        found: what was found.
    """

    def __init__(self, rule: str, check: str, found: str) -> None:
        super().__init__(f"rule {rule!r} fails check {check!r}: {found}")
        self.rule, self.check, self.found = rule, check, found

    def beside(self, others: Sequence[str]) -> CheckFailed:
        """The same failure, which says what other checks the rule fails."""
        if not others:
            return self
        made = CheckFailed(self.rule, self.check, f"{self.found} (and fails {', '.join(others)})")
        made.__cause__ = self.__cause__
        return made


class Failure(Exception):
    """What a check found wrong, in one line."""


class Skip(Exception):
    """Why a check cannot tell anything about this rule, in one line."""


def require(fine: bool, found: str) -> None:
    """Raise ``Failure`` with what was found, unless it is fine."""
    if not fine:
        raise Failure(found)


@dataclass(frozen=True)
class Feed:
    """A batch as a learner takes it: two views (n, C, H, W), negatives (2n,), labels (n,)."""

    a: Tensor
    b: Tensor
    negatives: Tensor | None
    labels: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> Feed:
        """The same with other views."""
        return replace(self, a=change(self.a), b=change(self.b))

    def permuted(self, order: Tensor) -> Feed:
        """The images in another order (n,), their negatives and labels carried along."""
        samples = torch.cat((order, len(order) + order))
        negatives = None if self.negatives is None else samples.argsort()[self.negatives[samples]]
        labels = None if self.labels is None else self.labels[order]
        return Feed(self.a[order], self.b[order], negatives, labels)

    def twice(self) -> Feed:
        """Every image two times, each copy with negatives among its own kind."""
        n = len(self.a)
        double = torch.arange(n).repeat(2)
        negatives = None
        if self.negatives is not None:
            of_first = self.negatives % n + 2 * n * (self.negatives // n)
            first, second = of_first[:n], of_first[n:]
            negatives = torch.cat((first, first + n, second, second + n))
        labels = None if self.labels is None else self.labels[double]
        return Feed(self.a[double], self.b[double], negatives, labels)


@dataclass(frozen=True)
class Update:
    """What one batch does: the losses, and by parameter name the gradient (None: there is none)."""

    losses: Tensor
    grads: dict[str, Tensor | None]

    def differences(self, other: Update, names: Sequence[str] | None = None) -> list[str]:
        """Parameters whose gradients are not the same to the last bit."""
        return [name for name in names or list(self.grads) if not same(self.grads[name], other.grads[name])]


@dataclass(frozen=True)
class Bench:
    """One small network for a rule, with images of a shape that the rule takes."""

    rule: Rule
    network: str
    shape: tuple[int, ...]
    seed: int = 0

    def learner(self, dtype: torch.dtype = torch.float64, other: int = 0, engine: str = "auto") -> Learner:
        """A fresh learner, the same every time; ``other``: of other weights.

        A copy of the rule, so that what it keeps beside the learner is not shared.
        """
        torch.manual_seed(self.seed + SEEDS * other)
        rule = copy.deepcopy(self.rule)
        encoder = _encoder(self.network, rule.inputs().shape(self.shape), rule).to(dtype)
        shapes = encoder.output_shapes(rule.inputs().shape(self.shape))
        patches = [s[1] // 2 if len(s) > 1 and s[1] % 2 == 0 and s[1] == s[2] else None for s in shapes]
        learner = Learner(encoder, rule, self.shape, patches, engine)
        with torch.no_grad():
            for parameter in learner.parameters():
                if parameter.requires_grad:
                    parameter.mul_(GAIN)
        return learner

    def feed(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Feed:
        """Two views that share an image each; negatives of which one is drawn twice; all classes in turn."""
        generator, n = torch.Generator().manual_seed(seed), IMAGES
        image = torch.randn(n, *self.shape, generator=generator, dtype=torch.float64)
        a, b = (image + 0.3 * torch.randn(image.shape, generator=generator, dtype=torch.float64) for _ in range(2))
        drawn = torch.randperm(2 * n, generator=generator)
        drawn[0] = drawn[1]
        labels = torch.arange(n) % int(getattr(self.rule, "classes", 10))
        return Feed(a.to(dtype), b.to(dtype), drawn, labels)

    def dead(self) -> list[int]:
        """Blocks, from 1, that are not updated: of zeros a comparison finds nothing, of rounding errors too much."""
        learner = self.learner()
        grads = update(learner, self.feed()).grads
        lengths = [
            sum(float(g.square().sum()) for name in of_layer(learner, layer) if (g := grads[name]) is not None) ** 0.5
            for layer in range(len(learner.encoder.blocks))
        ]
        least = max(DEAD, DEAD * max(lengths))
        return [block for block, length in enumerate(lengths, start=1) if not length > least]


def benches(rule: Rule) -> tuple[list[Bench], list[str]]:
    """The networks that the rule's inputs allow; and why others are not among them, or do not say all.

    Raises:
        UsageError: none; the last refusal.
    """
    found: list[Bench] = []
    refused: list[str] = []
    remarks: list[str] = []
    for network in NETWORKS:
        reason = ""
        for shape in SHAPES:
            try:
                bench, dead = _most_alive(rule, network, shape)
            except UsageError as error:
                reason = f"{network}: {error}"
                continue
            found.append(bench)
            if dead:
                blocks = f"block{'s' * (len(dead) > 1)} {', '.join(map(str, dead))}"
                remarks.append(f"no update of {blocks} of {network} under any of {SEEDS} seeds: nothing to compare")
            break
        else:
            refused.append(reason)
    if not found:
        raise UsageError(refused[-1])
    return found, [*(f"not on {reason}" for reason in refused), *remarks]


def _most_alive(rule: Rule, network: str, shape: tuple[int, ...]) -> tuple[Bench, list[int]]:
    """The bench of the first seed under which every block is updated, else most of them; and its dead blocks."""
    best: tuple[Bench, list[int]] | None = None
    for seed in range(SEEDS):
        bench = Bench(rule, network, shape, seed)
        dead = bench.dead()
        if best is None or len(dead) < len(best[1]):
            best = bench, dead
        if not dead:
            break
    assert best is not None
    return best


def update(learner: Learner, feed: Feed, seed: int = 0) -> Update:
    """One batch under a seed of torch's random numbers."""
    learner.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    losses = learner.accumulate_grads(feed.a, feed.b, feed.negatives, feed.labels)
    return Update(losses.detach().clone(), gradients(learner))


def gradients(learner: Learner) -> dict[str, Tensor | None]:
    """Copies of the gradients, by parameter name."""
    return {name: None if p.grad is None else p.grad.clone() for name, p in learner.named_parameters()}


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Equal to the last bit; where both are missing, too."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(0.12345), other.nan_to_num(0.12345))


def of_layer(learner: Learner, layer: int) -> list[str]:
    """Names of the parameters of one block and of the projections that are its own."""
    count = len(learner.encoder.blocks)
    places = [f"encoder.blocks.{layer}."]
    places += [f"projections.{key}.{layer}." for key, modules in learner.parts.items() if len(modules) == count]
    return [name for name, _ in learner.named_parameters() if name.startswith(tuple(places))]


def _encoder(network: str, shape: Sequence[int], rule: Rule) -> Encoder:
    options = encoders.Options(**rule.encoder_options)
    if network == "mlp" or len(shape) != 3:
        if network != "mlp":
            raise UsageError(f"the rule's inputs are of shape {tuple(shape)}, no images")
        return encoders.mlp(math.prod(shape), widths=WIDTHS, **rule.encoder_options)
    pools = (True, False, True) if network == "vgg" else (False, False, False)
    channels = (shape[0], *WIDTHS)
    convs: list[nn.Module] = [nn.Conv2d(c, d, 3, padding=1) for c, d in zip(channels[:-1], WIDTHS, strict=True)]
    return options.stack(convs, pools, {"name": network})


def the_rule(rule: Rule | type[Rule] | str) -> Rule:
    """A rule object from what ``check_rule`` takes.

    Raises:
        UsageError: an unknown name, or nothing of these.
    """
    if isinstance(rule, str):
        return rules.get(rule)
    if isinstance(rule, type) and issubclass(rule, Rule):  # pyright: ignore[reportUnnecessaryIsInstance]
        return rule()
    if not isinstance(rule, Rule):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"check_rule takes a rule, its class or its name, got {rule!r}")
    return rule
