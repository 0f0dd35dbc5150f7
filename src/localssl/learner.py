"""The learner: one batch in, losses and updates out. It composes an encoder and a rule and knows no rule by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from localssl import credit, readout, traffic
from localssl import engine as engines
from localssl.blocks import BlackBox, black_boxes
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.inputs import Inputs
from localssl.parallel import Processes
from localssl.projections import Sharded
from localssl.rules.base import Batch, Projections, Rule

SPREAD = ("local", "backprop")  # credit assignments whose change of W is a sum over samples, given dL/dz


class Learner(nn.Module):
    """An encoder, a rule and the rule's projections.

    Args:
        encoder: the stack of blocks to train.
        rule: from ``localssl.rules.get`` or your own.
        input_shape: shape of one image, (C, H, W).
        patches: side of the patches that share a projection, per block, on the block outputs; None averages over all
            positions. Larger than the map: clipped to it.
        engine: "autograd"; "hebbian", the three factors without autograd, or "hebbian-lean", which trades time for
            memory where references lie above; "integer", for an encoder with grids (option bits), whose weights are
            rounded here; "auto": hebbian where that is equal, integer where there are grids, else autograd.
        device: what is not perfect about synapses of a few bits.

    Attributes:
        engine: the one that it came to.
        engine_note: why "auto" came to autograd; None where it did not.
        projections: by key ("lateral", "feedback", "head"), one entry per loss; ``projections[key][l].weight`` is B^l
            of shape (d_z, d_c). A key is absent where the rule has none; the credit assignment may add its own
            ("backward").
        lengths: of the readouts, d_l.

    Raises:
        UsageError: patches that do not divide the maps, inputs that the encoder does not accept, an unknown engine, or
            one that cannot train this encoder by this rule.
    """

    def __init__(
        self,
        encoder: Encoder,
        rule: Rule,
        input_shape: Sequence[int],
        patches: readout.Patches = None,
        engine: str = "auto",
        device: engines.Device = engines.PERFECT,
    ) -> None:
        super().__init__()
        if not isinstance(rule, Rule):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"Learner takes a rule object, got {rule!r}; write localssl.rules.get({str(rule)!r})")
        self.input_shape = tuple(input_shape)
        self.encoder = encoder
        self.rule = rule = rule.for_images(self.input_shape)
        _refuse_crossing(encoder, rule)
        chosen = engines.choose(engine, encoder, rule, device)
        self.credit, self.engine, self.engine_note = chosen.credit, chosen.name, chosen.note
        self.inputs = rule.inputs()
        self.output_shapes = self._output_shapes(self.inputs.shape(self.input_shape))
        _refuse_cut_off(encoder, self.inputs.shape(self.input_shape))
        self.patches = rule.patches(readout.per_block(patches, len(encoder.blocks)))
        for block, (shape, patch) in enumerate(zip(self.output_shapes, self.patches, strict=True), start=1):
            readout.check(shape, patch, block)
        self.credit.check(rule, self.output_shapes, self.patches)
        lengths = [readout.dim(shape, patch) for shape, patch in zip(self.output_shapes, self.patches, strict=True)]
        self.lengths = lengths
        dims = readout.Dims(lengths, [shape[0] for shape in self.output_shapes])
        param = next(encoder.parameters(), torch.empty(0))
        built = rule.build(dims)
        if not isinstance(built, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"rule {rule.name or type(rule).__name__!r}: build returned a {type(built).__name__}; return a dict of "
                f"lists, one module per layer in each, {{'key': [...]}}"
            )
        built |= self.credit.build(encoder, rule, dims, built)
        parts = {key: nn.ModuleList(modules) for key, modules in built.items()}
        self.projections = nn.ModuleDict(parts).to(param.device, param.dtype)

    def _output_shapes(self, sample: tuple[int, ...]) -> list[tuple[int, ...]]:
        try:
            return self.encoder.output_shapes(sample)
        except UsageError as error:
            if sample == self.input_shape:
                raise
            raise UsageError(
                f"rule {self.rule.name!r} makes samples of shape {sample} of images of shape {self.input_shape}, and "
                f"the encoder takes images alone; use one that takes both sizes, of convolutions ({error})"
            ) from error

    @property
    def parts(self) -> Projections:
        """The projections as a rule sees them."""
        return cast(Projections, self.projections)

    def losses(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """One loss per layer, (L,), or (1,) for an end-to-end rule: means over the 2n samples.

        Args:
            view_a: one view of each of n >= 2 images, (n, C, H, W).
            view_b: another view of the same images, (n, C, H, W).
            negatives: LongTensor (2n,) of indices into the stacked positives, serving every layer and every loss;
                None leaves the choice to the rule. Ignored by rules that draw none.
            labels: LongTensor (n,), for supervised rules only.

        Raises:
            UsageError: views of another shape than ``input_shape``, fewer than two images, bad negatives or labels.
        """
        step = self.step(view_a, view_b, negatives, labels)
        return step.losses(self.credit.activities(self.encoder, step.x))

    def updates(
        self,
        view_a: Tensor,
        view_b: Tensor,
        negatives: Tensor | None = None,
        labels: Tensor | None = None,
        factored: bool = False,
        processes: Processes | None = None,
    ) -> Iterator[Tensor]:
        """Add the rule's update to ``.grad`` and yield the losses (detached); the optimiser descends what is in there.

        Under autograd nearly every rule yields once a batch, the engine once a block, and rules that step their weights
        while they still infer (``ipc``) several times: step the optimiser and zero the gradients each time. The losses
        of the first are complete after the last. With ``factored``, for ``optimizer.FactoredAdamW``, gradients of dense
        projections are left as factors where the engine has them. With ``processes`` the views are this process's part
        of a batch that is spread over all of them, negatives index the whole batch, the losses are the whole batch's,
        and so is the update. Other arguments and errors as in ``losses``.
        """
        if processes is None:
            step = self.step(view_a, view_b, negatives, labels)
            return self.credit.updates(dataclasses.replace(step, factored=factored))
        if reason := self.not_spread():
            raise UsageError(f"rule {self.rule.name!r} cannot compare samples across processes: {reason}")
        step = self.step(view_a, view_b, None, labels)
        matrices = self.matrices(processes, len(view_a))
        spread = dataclasses.replace(step, negatives=negatives, factored=factored, processes=processes)
        return self._spread(dataclasses.replace(spread, matrices=matrices))

    def _spread(self, step: credit.Step) -> Iterator[Tensor]:
        assert step.processes is not None
        added: set[nn.Parameter] = set()  # blocks whose gradients wait to be applied with those of the others
        for losses in self.credit.updates(step):
            fresh = [p for p in self.encoder.parameters() if p.grad is not None and p not in added]
            step.processes.add_up(fresh)
            added.update(fresh)
            yield losses

    def not_spread(self) -> str | None:
        """Why a batch of this rule cannot be spread over processes as one batch; None where it can."""
        if type(self.inputs) is not Inputs:
            return "its samples are not two views of the images"
        if self.rule.credit not in SPREAD:
            return f"its credit assignment ({self.rule.credit}) works on a whole batch"
        return None

    def matrices(self, processes: Processes, images: int) -> frozenset[int]:
        """The layers, from 0, whose changes of B are summed as matrices; the others' are made of rows.

        Args:
            processes: that share a batch, and say how.
            images: of each of them.

        Raises:
            UsageError: they shall be matrices, and cannot be.
        """
        sizes = self.sizes(processes, images)
        if isinstance(sizes, str) and processes.exchange == "matrices":
            raise UsageError(f"--exchange matrices: {sizes}; leave it out")
        if isinstance(sizes, str) or processes.exchange == "rows":
            return frozenset()
        return traffic.choose(sizes) if processes.exchange == "auto" else frozenset(range(len(sizes.layers)))

    def sizes(self, processes: Processes, images: int) -> traffic.Sizes | str:
        """What the traffic of an update depends on; or why its changes of B can be made of rows only."""
        if not isinstance(self.credit, engines.ThreeFactor):
            return f"engine {self.engine!r} makes changes of B from rows only"
        if any(isinstance(module, Sharded) for module in self.projections.modules()):
            return "of a sharded B they are made from rows only"
        pace = traffic.pace(processes.device.type, processes.threads)
        return engines.sizes(self.rule, self.parts, self.lengths, images, processes.size)._replace(pace=pace)

    def accumulate_grads(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Add the rule's update to ``.grad`` of the blocks and projections; the optimiser descends it.

        The update is the gradient of the sum of the losses as far as the rule's credit assignment lets it reach; under
        a local rule each term reaches its own block and its own projections only. Where ``updates`` yields several
        times, it is their sum at the present weights. Arguments, errors and the returned losses (detached) are those
        of ``losses``.
        """
        losses, *_ = self.updates(view_a, view_b, negatives, labels)
        return losses

    def end_to_end_loss(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The rule's own last-layer loss, a scalar whose graph runs through all blocks: the reference of alignment."""
        step = self.step(view_a, view_b, negatives, labels)
        return step.losses(self.encoder(step.x))[-1]

    def batch(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Batch:
        """The samples through the blocks, read out: what the rule sees. Arguments and errors as in ``losses``."""
        step = self.step(view_a, view_b, negatives, labels)
        return step.read(self.credit.activities(self.encoder, step.x))

    def read(self, z: Sequence[Tensor], negatives: Tensor | None = None, labels: Tensor | None = None) -> Batch:
        """What the rule sees of the block outputs z^l, (2n, ...), view a above view b."""
        return self.rule.with_negatives(Batch.read(z, self.patches, negatives, labels))

    def step(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> credit.Step:
        """A batch as the credit assignment takes it. Arguments and errors as in ``losses``."""
        self.check(view_a, view_b, negatives, labels)
        return self.step_of(self.enter(view_a, view_b, negatives, labels), negatives, labels)

    def enter(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """What enters the first block, (N, ...): what the rule's inputs make of both views. Arguments of ``losses``."""
        entry = self.encoder.entry
        return self.inputs(entry(view_a), entry(view_b), negatives, labels)

    def step_of(self, x: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None) -> credit.Step:
        """As ``step``, for samples that ``inputs`` has made already."""
        return credit.Step(self.encoder, self.rule, self.parts, x, self.patches, negatives, labels)

    def check(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        """Refuse views, negatives and labels that ``losses`` does not take, with its errors."""
        for view in (view_a, view_b):
            if tuple(view.shape[1:]) != self.input_shape:
                raise UsageError(
                    f"a view has images of shape {tuple(view.shape[1:])}, the learner takes {self.input_shape}"
                )
        n = len(view_a)
        if len(view_b) != n:
            raise UsageError(f"view a has {n} images, view b {len(view_b)}; both must show the same images")
        if n < 2:
            raise UsageError(f"a batch of {n} image has no negatives; use at least 2 images")
        dtype = next(self.encoder.parameters(), view_a).dtype
        if not torch.is_autocast_enabled(view_a.device.type) and {view_a.dtype, view_b.dtype} != {dtype}:
            raise UsageError(
                f"the views are {view_a.dtype} and {view_b.dtype}, the encoder is {dtype}; convert one of them"
            )
        if self.rule.uses_labels:
            if labels is None:
                raise UsageError(f"rule {self.rule.name!r} is supervised: it needs the labels of the images")
            if labels.shape != (n,) or labels.dtype != torch.int64:
                raise UsageError(
                    f"labels must be a LongTensor of {n}, got {labels.dtype} of shape {tuple(labels.shape)}"
                )
        if negatives is not None and self.rule.uses_negatives:
            if not isinstance(negatives, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise UsageError(f"negatives must be a LongTensor of {2 * n} indices, got a {type(negatives).__name__}")
            if negatives.shape != (2 * n,) or negatives.dtype != torch.int64:
                raise UsageError(
                    f"negatives must be a LongTensor of {2 * n} indices (both views), "
                    f"got {negatives.dtype} of shape {tuple(negatives.shape)}"
                )
            if int(negatives.min()) < 0 or int(negatives.max()) >= 2 * n:
                raise UsageError(f"negatives must lie in 0..{2 * n - 1}")


def _refuse_crossing(encoder: Encoder, rule: Rule) -> None:
    """Refuse black boxes where errors would have to pass through them, or where the only loss is at one.

    Raises:
        UsageError: names the first of them.
    """
    boxes = black_boxes(encoder.blocks)
    if not boxes:
        return
    name = rule.name or type(rule).__name__
    if credit.of(rule.credit).crosses:
        number, box = boxes[0]
        raise UsageError(
            f"rule {name!r} sends errors through the blocks, and black box {box.name!r} in block {number} has no "
            f"derivative; use a local rule, for instance clapp++"
        )
    last = encoder.blocks[-1]
    if not rule.per_layer and next(last.parameters(), None) is None:
        raise UsageError(f"rule {name!r} has its only loss at the last block, which is a black box; end with weights")


def _refuse_cut_off(encoder: Encoder, shape: Sequence[int]) -> None:
    """Refuse weights that no loss at their block's end reaches, as a black box of the block comes after them.

    Raises:
        UsageError: names the first of them.
    """
    found = dict(black_boxes(encoder.blocks))
    if not found:
        return
    param = next(encoder.parameters(), torch.empty(0))
    x = torch.zeros(2, *shape, dtype=param.dtype, device=param.device)
    was_training = encoder.training
    encoder.eval()
    try:
        for number, block in enumerate(encoder.blocks, start=1):
            with torch.enable_grad():
                x = block(x.detach())
            if number in found:
                _reached(number, block, x, found[number])
    finally:
        encoder.train(was_training)


def _reached(number: int, block: nn.Module, z: Tensor, box: BlackBox) -> None:
    """Refuse parameters that a block's output ``z`` does not depend on."""
    named = {n: p for n, p in block.named_parameters() if p.requires_grad}
    if not named:
        return
    found: tuple[Tensor | None, ...] = (None,)
    if z.requires_grad:
        found = torch.autograd.grad(z.sum(), list(named.values()), allow_unused=True)
    for name, gradient in zip(named, found, strict=False):
        if gradient is None:
            raise UsageError(
                f"block {number}: no loss reaches its {name}, before black box {box.name!r}; begin the next block with "
                f"the black box, or make it a block of its own"
            )
