"""What a comparison is of: the settings that all rows share, and the rows, by the names that users give them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from localssl import alignment, rules
from localssl.encoders import registry
from localssl.runs.config import parse_options
from localssl.runs.run import get_rule, train_split

UNTRAINED = "untrained"
ALL = "all"  # stands for every rule
_OPTIONS = re.compile(r"(?:\s+[A-Za-z_]\w*=\S+)+\s*$")  # at the end of a row's name; a file's name may hold spaces


@dataclass(frozen=True)
class Study:
    """What all rows share. What is None is the data set's or the rule's own default.

    Args:
        data: as ``localssl train --data``.
        epochs, width, limit_images, batch_size, patches, precision, image_size, skip_bad: as in training.
        labels: budgets of labels per class of the fast probe.
        probe_images: the probe fits on this many training images; None: all.
        protocol: of the probe, "fast" or "paper".
        align_batches: batches of test images on which alignment is measured; 0: not at all.
        search_lr: rates tried for every rule on a part of the training images; one alone is taken without a trial;
            none: the rule's default.
        search_epochs: of each trial.
        encoder, encoder_options: as in training; options as ``spelt`` writes them.
        views: as in training; the user's own by the file's whole path.
    """

    data: str
    epochs: int | None = None
    width: float = 1.0
    limit_images: int | None = None
    batch_size: int = 64
    patches: tuple[int, ...] | None = None
    precision: str = "32-true"
    labels: tuple[str, ...] = ("all",)
    probe_images: int | None = None
    protocol: str = "fast"
    align_batches: int = 10
    search_lr: tuple[float, ...] = ()
    search_epochs: int = 2
    encoder: str | None = None  # younger than format 1, as what follows: cells without them are read as before
    encoder_options: tuple[str, ...] = ()
    image_size: int | None = None
    skip_bad: bool = False
    views: str | None = None

    def kept(self) -> dict[str, Any]:
        """As a cell keeps it: without the views where they are the data set's own, as before there were others."""
        return {k: v for k, v in asdict(self).items() if k != "views" or v is not None}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Study:
        """As a cell keeps it."""
        return cls(**tuples(values))


@dataclass(frozen=True)
class Row:
    """One row: a rule, its options, and what of training differs from the other rows (plain values of TrainConfig)."""

    label: str
    rule: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])


def row(text: str) -> Row:
    """The row of a rule and its options, "ipc objective=lpl steps=5"; spelt in another order it is the same row.

    Raises:
        UsageError: never here; unknown rules and options are refused with the rest of the comparison.
    """
    found = _OPTIONS.search(text)
    options = parse_options(found[0].split()) if found else {}
    return of_rule(text[: found.start()] if found else text, options)


def of_rule(rule: str, options: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Row:
    """The row of a rule with these options; its label is what ``row`` reads, so that equal rows share their cells."""
    options = {name: options[name] for name in sorted(options)}
    return Row(" ".join([rule, *spelt(options)]), rule, options, changes or {})


def spelt(options: Mapping[str, Any]) -> list[str]:
    """Options as they are typed, NAME=VALUE, without spaces."""
    return [f"{k}={v if isinstance(v, str) else json.dumps(v, separators=(',', ':'))}" for k, v in options.items()]


def named(texts: Sequence[str], data: str) -> list[Row]:
    """The rows of a command line, each once; "all", or nothing, stands for ``default_rules``."""
    words = [word for text in texts or (ALL,) for word in (default_rules(data) if text == ALL else (text,))]
    return list({found.label: found for found in map(row, words)}.values())


def default_rules(data: str = "") -> list[str]:
    """Every registered rule but yardsticks, which use what no rule may, and on unlabelled data supervised ones."""
    found = {name: rules.get(name) for name in rules.names()}
    labelled = train_split(data) != "unlabeled"
    return [n for n, rule in found.items() if rule.credit != "optimum" and (labelled or not rule.uses_labels)]


def options_of_encoder(typed: Sequence[str]) -> tuple[str, ...]:
    """Options of an encoder as a study keeps them: in whichever order they were typed, they come out the same."""
    return tuple(spelt(dict(sorted(parse_options(typed, "--encoder-options").items()))))


def encoder_options(row: Row, study: Study) -> tuple[str, ...]:
    """The encoder's options under a rule, ("late=true", "norm=length"): the rule's wishes, and what was typed.

    Raises:
        UsageError: an encoder of the user's own that cannot be loaded.
    """
    wished = get_rule(row.rule, dict(row.options)).encoder_options
    if study.encoder is not None:
        wished = registry.granted(study.encoder, wished)
    return options_of_encoder([*spelt(wished), *row.changes.get("encoder_options", study.encoder_options)])


def descends(row: Row) -> bool:
    """Whether the updates descend a loss, whose backpropagation they can be held against; Hebbian ones do not."""
    return alignment.refusal(get_rule(row.rule, dict(row.options))) is None


def untrained_row(options: Sequence[str], plain: bool = True) -> Row:
    """The row of the encoder with these options, left untrained; ``plain``: those that no rule has asked for."""
    label = UNTRAINED if plain else f"{UNTRAINED} ({' '.join(options)})"
    return Row(label, "clapp++", changes={"epochs": 0, "encoder_options": tuple(options)})


def safe(label: str) -> str:
    """A label as a file's name; labels that would share one stay apart by a digest."""
    name = re.sub(r"[^\w+.-]+", "_", label).strip("_")
    if len(name) > 60:
        name = f"{name[:20]}..{name[-36:]}"  # of a path its end says most
    return name if name == label else f"{name}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they were before JSON made lists of tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
