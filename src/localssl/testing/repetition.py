"""Checks that the same comes of the same: again, in another order, taken twice, after a resume."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from localssl.learner import Learner
from localssl.testing.bench import Bench, Feed, Skip, Update, gradients, require, same, update
from localssl.testing.comparing import TO_ROUNDING, distance, draws, listed, other_losses


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
            not changed, f"the same seed gives another update of {listed(changed)}: random numbers of another source?"
        )
    after: list[float] = []
    for seed in (0, 1):
        update(bench.learner(), feed, seed)
        after.append(float(torch.rand(())))
    require(after[0] != after[1], "the rule sets the seed of torch's random numbers, which the views are drawn from")


def permutation(bench: Bench) -> None:
    """The batch in another order, its negatives and labels carried along, gives the same losses and update.

    Where the inputs draw at random, what they made is put in another order instead, if image i of n is in their rows
    i, n + i, 2n + i, … Where the losses draw, they do it under the options of ``no_draws``, if at all.
    """
    bench, feed = _without_draws(bench), bench.feed()
    order = torch.tensor([2, 0, 3, 1])
    drawn_early, drawn_late = draws(bench, feed)
    if drawn_late:
        raise Skip("its losses draw at random, which no order can be carried along with")
    one = update(bench.learner(), feed)
    other = _of_the_same_inputs(bench, feed, feed.permuted(order), order, drawn_early)
    off = distance(other.losses, one.losses)
    require(
        off < TO_ROUNDING, f"the losses of the images in another order are off by {off:.1g}: {other_losses(one, other)}"
    )
    for part, names in _parts(one).items():
        whole, moved = (_together(u.grads[name] for name in names) for u in (one, other))
        off = distance(moved, whole)
        require(off < TO_ROUNDING, f"the update of {part} is off by {off:.1g} for the images in another order")


def _without_draws(bench: Bench) -> Bench:
    """The bench with the rule under those of its options that draw nothing, if it declares any."""
    return replace(bench, rule=replace(bench.rule, **bench.rule.no_draws)) if bench.rule.no_draws else bench


def _of_the_same_inputs(bench: Bench, feed: Feed, moved: Feed, order: Tensor, drawn: bool) -> Update:
    """The update of the images of ``feed`` taken in an order (or twice), ``moved``; drawn inputs are not drawn anew.

    Raises:
        Skip: inputs that draw and are not laid out by image.
    """
    if not drawn:
        return update(bench.learner(), moved)
    x = _inputs(bench, feed)
    _check_rows(bench, feed, x)
    rows = torch.cat([order + start for start in range(0, len(x), len(feed.a))])
    learner = bench.learner()
    losses, *_ = learner.credit.updates(learner.step_of(x[rows], moved.negatives, moved.labels))
    return Update(losses, gradients(learner))


def _inputs(bench: Bench, feed: Feed) -> Tensor:
    learner = bench.learner()
    torch.manual_seed(0)
    return learner.enter(feed.a, feed.b, feed.negatives, feed.labels)


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


def mean(bench: Bench) -> None:
    """The update does not grow with the batch: of every image taken twice, each part's is about as long as of once.

    Parts are the blocks and projections. 0.8 to 1.25 times is about as long (variances with n - 1 and contrasts with
    all others move a little), which n^½ is not; where draws cannot be carried along, 0.55 to 1.7 times in the median.
    """
    bench, feed = _without_draws(bench), bench.feed()
    early, late = draws(bench, feed)
    twice, order = feed.twice(), torch.arange(len(feed.a)).repeat(2)
    try:
        if late:
            raise Skip("")
        pairs = [(update(bench.learner(), feed), _of_the_same_inputs(bench, feed, twice, order, early))]
        least, most = 0.8, 1.25
    except Skip:
        pairs = [tuple(update(bench.learner(), f, seed) for f in (feed, twice)) for seed in range(5)]
        least, most = 0.55, 1.7
    for part, names in _parts(pairs[0][0]).items():
        lengths = [[float(_together(u.grads[name] for name in names).norm()) for u in pair] for pair in pairs]
        ratio = statistics.median(two / one if one else float(two > 0) + 1 for one, two in lengths)
        require(
            least < ratio < most,
            f"with every image twice in the batch the update of {part} is {ratio:.2f} times as long: not a mean?",
        )


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
    require(not changed, f"{listed(changed)} differ after a resume ({advice})")


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
