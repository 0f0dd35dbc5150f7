"""The stack of blocks. Every block is one unit of local learning; its output is the activity z^l.

An encoder knows nothing of rules. ``encoder(x)`` runs the blocks in order and returns every output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from localssl.blocks import BlackBoxError
from localssl.errors import UsageError, first_line


class Encoder(nn.Module):
    """A stack of blocks.

    Args:
        blocks: the blocks, first to last; each maps the previous block's output to its own.
        config: how a named encoder was built, kept beside its weights; None for a stack of the user's own.
        emit: per block, what stands between its output and what the next block, the probe and others see of it; None:
            nothing.
        entry: what every image goes through by itself, before a rule's inputs make pairs or noisy copies of it; None:
            nothing.

    Attributes:
        preprocess: normalises images as in training; set by ``localssl.load``, otherwise None.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        config: dict[str, Any] | None = None,
        emit: Iterable[nn.Module] | None = None,
        entry: nn.Module | None = None,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.entry = nn.Identity() if entry is None else entry
        self.emit = nn.ModuleList([nn.Identity() for _ in self.blocks] if emit is None else emit)
        self.config = config
        self.preprocess: nn.Module | None = None
        if len(self.blocks) == 0:
            raise UsageError("an encoder needs at least one block, got none")

    @classmethod
    def from_blocks(cls, blocks: Sequence[nn.Module]) -> Encoder:
        """An encoder from any modules, for instance the stages of a ResNet.

        Raises:
            UsageError: no block, or something that is not an ``nn.Module``.
        """
        for i, block in enumerate(blocks):
            if not isinstance(block, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise UsageError(f"block {i + 1} is a {type(block).__name__}; every block must be a torch.nn.Module")
        return cls(blocks)

    @classmethod
    def from_torchvision(cls, name: str, blocks: int | Sequence[str] = 4, **options: Any) -> Encoder:
        """A network of torchvision (random weights) in blocks, each learning by backpropagation within.

        Args:
            name: as ``torchvision.models`` calls it: "resnet18".
            blocks: their number, cut where the maps change their size; or the modules that they end with.
            options: see ``other_peoples``.

        Raises:
            UsageError: see ``networks.blocks_of``; a cut through a skip connection is one.
        """
        from localssl.encoders.others import other_peoples  # which makes encoders of this class

        return other_peoples(f"torchvision:{name}", blocks, **options)

    @classmethod
    def from_timm(cls, name: str, blocks: int | Sequence[str] = 4, **options: Any) -> Encoder:
        """The same for a network of timm.

        Raises:
            UsageError: as ``from_torchvision``; timm is not installed.
        """
        from localssl.encoders.others import other_peoples

        return other_peoples(f"timm:{name}", blocks, **options)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Every block's output, first to last, for inputs ``x`` of shape (N, ...)."""
        outputs: list[Tensor] = []
        for number, block in enumerate(self.blocks, start=1):
            x = run_block(block, x, number)
            outputs.append(x)
        return outputs

    def emitted(self, x: Tensor) -> list[Tensor]:
        """What goes on from every block, for the probe, embeddings and monitors: nearly always the outputs."""
        return [emit(z) for emit, z in zip(self.emit, self(self.entry(x)), strict=True)]

    @torch.no_grad()
    def output_shapes(self, input_shape: Sequence[int], emitted: bool = False) -> list[tuple[int, ...]]:
        """Shape of every block's output (or of what goes on from it) for one input, without the batch dimension.

        Raises:
            UsageError: the blocks do not accept inputs of this shape.
        """
        param = next(self.parameters(), torch.empty(0))
        x = torch.zeros(2, *input_shape, dtype=param.dtype, device=param.device)
        was_training = self.training
        self.eval()  # batch statistics of zeros must not enter running averages
        try:
            return [tuple(z.shape[1:]) for z in (self.emitted(x) if emitted else self(x))]
        except UsageError:
            raise
        except BlackBoxError as error:
            raise UsageError(f"{error}, for inputs of zeros {tuple(input_shape)}") from error
        except (RuntimeError, ValueError, TypeError) as error:
            reason = self._mismatch(input_shape) or first_line(error)
            raise UsageError(f"the encoder does not accept inputs of shape {tuple(input_shape)}: {reason}") from error
        finally:
            self.train(was_training)
            torch.clear_autocast_cache()  # PyTorch 2.9 would go on with weights that were cast here, without a graph

    def _mismatch(self, shape: Sequence[int]) -> str:
        """How inputs differ from what the first layer takes; "" where that is not what is wrong."""
        weighted = (m for m in self.blocks[0].modules() if isinstance(m, nn.Conv2d | nn.Linear))
        first = next(weighted, None)
        if isinstance(first, nn.Linear) and first.in_features != math.prod(shape):
            return f"its first layer takes {first.in_features} numbers a sample, these have {math.prod(shape)}"
        if isinstance(first, nn.Conv2d) and first.in_channels != shape[0]:
            return f"its first layer takes {first.in_channels} channels, these have {shape[0]}"
        return ""


def run_block(block: nn.Module, x: Tensor, number: int) -> Tensor:
    """The block's output for input ``x``, which is the previous block's output and must stay as it is.

    Raises:
        UsageError: the block changed its input in place, which would silently change the previous block's loss.
    """
    if x.is_inference():  # such tensors keep no count of their changes
        return block(x)
    version = x._version
    out = block(x)
    if x._version != version:
        raise UsageError(
            f"block {number} changes its input in place (ReLU(inplace=True) at its head?), "
            f"and with it the output of the block before; use inplace=False there"
        )
    return out
