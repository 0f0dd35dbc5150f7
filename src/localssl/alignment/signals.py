"""One forward pass for any number of rules: the errors dL/dz of every rule, and the weight gradients they leave."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor

from localssl.encoders import Encoder, run_block
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.rules.base import Batch, next_sample

Gradients = list[dict[str, Tensor]]  # per block, by the name of the parameter


class Pair(NamedTuple):
    """One batch to measure on: two views (n, C, H, W), negatives (2n,) or None, labels (n,) or None."""

    view_a: Tensor
    view_b: Tensor
    negatives: Tensor | None = None
    labels: Tensor | None = None


class Signals:
    """The encoder run once over both views of a batch, its graph cut in front of every block.

    A rule's errors dL/dz^l come from its losses of the outputs; each goes through its own block only (``local``), or
    from the last block down through all of them (``end_to_end``). Both are what autograd gives in ``Learner`` where no
    two blocks share weights.
    """

    def __init__(self, encoder: Encoder, pair: Pair, x: Tensor | None = None):
        """``x``: what enters the encoder; None: the two views, stacked."""
        self.encoder, self.pair = encoder, pair
        self.x = x = torch.cat((pair.view_a, pair.view_b)) if x is None else x
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        for number, block in enumerate(encoder.blocks, start=1):
            x = x.detach()
            if number > 1:  # nobody asks for the images' own gradient
                x.requires_grad_()
            self._inputs.append(x)
            x = run_block(block, x, number)
            self._outputs.append(x)
        self.z = [output.detach().requires_grad_() for output in self._outputs]
        """Every block's output (2n, ...), a leaf."""

    def batch(self, learner: Learner) -> Batch:
        """What the learner's rule sees: its readouts of ``z``."""
        return learner.read(self.z, self.pair.negatives, self.pair.labels)

    def errors(self, loss: Tensor) -> list[Tensor]:
        """dL/dz of every block for a loss of ``z``; zeros where it does not depend on one."""
        found = cast(tuple[Tensor | None, ...], torch.autograd.grad(loss, self.z, allow_unused=True))
        return [torch.zeros_like(z) if g is None else g for z, g in zip(self.z, found, strict=True)]

    def of_rule(self, learner: Learner) -> Gradients:
        """The weight gradients of the learner's rule."""
        how = learner.rule.credit
        if how not in ("local", "optimum", "backprop") or learner.engine == "integer":
            return self._of_credit(learner)
        errors = self.errors(self._losses(learner).sum())
        return self.end_to_end(errors) if how == "backprop" else self.local(errors)

    def _losses(self, learner: Learner) -> Tensor:
        """The rule's losses; what it draws at random is the same every time, and what it keeps stays."""
        with drawn_alike(self.x.device), unmoved(learner):
            return learner.rule.losses(self.batch(learner), learner.parts)

    def _of_credit(self, learner: Learner) -> Gradients:
        """What another credit assignment leaves in ``.grad``, which is put back as it was."""
        parameters = list(learner.parameters())
        before = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        try:
            with drawn_alike(self.x.device), unmoved(learner):
                for _ in learner.credit.updates(learner.step_of(self.x, self.pair.negatives, self.pair.labels)):
                    pass
            return [
                {
                    n: torch.zeros_like(p) if p.grad is None else p.grad
                    for n, p in block.named_parameters()
                    if p.requires_grad
                }
                for block in self.encoder.blocks
            ]
        finally:
            for p, grad in zip(parameters, before, strict=True):
                p.grad = grad

    def of_last_loss(self, learner: Learner) -> Gradients:
        """The weight gradients of end-to-end backpropagation of the learner's last-layer loss."""
        return self.end_to_end(self.last_errors(learner))

    def last_errors(self, learner: Learner) -> list[Tensor]:
        """dL/dz of the learner's last-layer loss, as its own formula has it (no chain through the blocks)."""
        return self.errors(self._losses(learner)[-1])

    def local(self, errors: Sequence[Tensor]) -> Gradients:
        """The weight gradients of every block for its own error."""
        return [self._through(block, error, below=False)[0] for block, error in enumerate(errors)]

    def end_to_end(self, errors: Sequence[Tensor]) -> Gradients:
        """The weight gradients of every block for its own error plus what the chain rule brings from above."""
        return self.chain(errors)[0]

    def chain(self, errors: Sequence[Tensor]) -> tuple[Gradients, list[Tensor]]:
        """As ``end_to_end``, and the full errors dL/dz of every block."""
        full = list(errors)
        gradients: Gradients = [{} for _ in full]
        for block in reversed(range(len(full))):
            gradients[block], below = self._through(block, full[block], below=block > 0)
            if below is not None:
                full[block - 1] = full[block - 1] + below
        return gradients, full

    def _through(self, block: int, error: Tensor, below: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        """Backward through one block: gradients of its parameters and, if asked for, the error of its input."""
        named = {n: p for n, p in self.encoder.blocks[block].named_parameters() if p.requires_grad}
        wanted = [*named.values(), *([self._inputs[block]] if below else [])]
        output = self._outputs[block]
        if not wanted or not output.requires_grad:
            return {}, None
        found = cast(
            tuple[Tensor | None, ...],
            torch.autograd.grad(output, wanted, error, retain_graph=True, allow_unused=True),
        )
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]
        return dict(zip(named, filled, strict=False)), filled[-1] if below else None


@contextmanager
def drawn_alike(device: torch.device) -> Generator[None]:
    """Whatever is drawn within is the same every time; the generator is left as it was."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(0)
        yield


@contextmanager
def unmoved(learner: Learner) -> Generator[None]:
    """The buffers of the rule's parts (a running rate, say) are copies within: measuring moves none of them."""
    kept = [(module, dict(module.named_buffers(recurse=False))) for module in learner.projections.modules()]
    for module, buffers in kept:
        for name, buffer in buffers.items():
            setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, buffers in kept:
            for name, buffer in buffers.items():
                setattr(module, name, buffer)  # not copied back: a graph may hold what the rule has read


def shared_negatives(learners: Sequence[Learner], n: int, device: torch.device) -> Tensor | None:
    """One draw of negatives (2n,) for all rules and layers: random where a rule draws so; None where none draws."""
    if not any(learner.rule.uses_negatives for learner in learners):
        return None
    if any(getattr(learner.rule, "negatives", "next") == "random" for learner in learners):
        return torch.randint(2 * n, (2 * n,), device=device)
    return next_sample(2 * n, device)


def to_pair(batch: Sequence[Tensor | None]) -> Pair:
    """A batch as given, (view_a, view_b[, negatives[, labels]]).

    Raises:
        UsageError: something else.
    """
    views = [] if isinstance(batch, Tensor) else list(batch)[:2]
    if len(views) < 2 or len(batch) > 4 or not all(isinstance(view, Tensor) for view in views):
        raise UsageError("data is a list of batches, each (view_a, view_b) or (view_a, view_b, negatives, labels)")
    return Pair(*batch)  # pyright: ignore[reportArgumentType]


def shared(learners: Sequence[Learner], batch: Sequence[Tensor | None]) -> Pair:
    """A batch as given, with the negatives that all learners share.

    Raises:
        UsageError: no batch, or views or negatives that one of the learners does not take.
    """
    pair = to_pair(batch)
    for learner in learners:
        learner.check(*pair)
    if pair.negatives is None:
        pair = pair._replace(negatives=shared_negatives(learners, len(pair.view_a), pair.view_a.device))
    return pair


def block_gradients(encoder: Encoder, loss: Tensor) -> list[Tensor]:
    """Gradient of ``loss`` with respect to every block's weights (no biases), one flat float64 vector per block."""
    blocks = [[p for p in block.parameters() if p.ndim > 1] for block in encoder.blocks]
    flat = [p for block in blocks for p in block]
    grads = iter(cast(tuple[Tensor | None, ...], torch.autograd.grad(loss, flat, allow_unused=True)))
    result: list[Tensor] = []
    for block in blocks:
        found = [(p, next(grads)) for p in block]
        parts = [torch.zeros_like(p) if g is None else g for p, g in found]
        result.append(torch.cat([g.flatten().double() for g in parts]) if parts else torch.zeros(0))
    return result
