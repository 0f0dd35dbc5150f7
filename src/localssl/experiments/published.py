"""Published accuracies beside ours: the paper's tables, where each number comes from, and what a difference means.

Accuracies in percent on test images. ``half``: half of the published 95 % interval over 4 seeds, None where there is
none. A number is "quoted" where the paper took it from the rule's own publication, measured with that one's network,
views, labels and probe; it is comparable with no number of a common probe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from localssl import own
from localssl.data.specs import spec_for
from localssl.encoders.nets import VGG6_CHANNELS
from localssl.stats import t_interval

Recipe = tuple[int, int, float]  # epochs, images in a batch, learning rate
EPOCHS, BATCH, LR = COMMON = (300, 32, 2e-4)  # the paper's, Appendix B
A4_CE, A4_CLAPP, A4_LPL = (50, 128, 5e-5), COMMON, (800, 1024, 1e-3)  # Table A4

WIDEST = 1.0  # half of our interval, in points, beyond which it says nothing
OWN = "the paper's own runs; vgg6, linear probe on all six layers, 32,768 features"
BATCHES = (
    "The paper's own runs used up to 4 GPUs with 32 images on each: how many images were behind an update is not "
    "known, and a run here has to have 32 to be held against them."
)
PLAIN = {"schedule": "constant", "precision": "32-true"}
A4_DECAY = 1e-4  # Table A4, for cross-entropy and LPL, under "Adam": as LPL's code and PyTorch's Adam take it, L2
SCORE = {"f": "hinge", "loss_type": 2, "margin": 1.0, "negatives": "next"}
NOT_STATED = "network, views and probe of Table A3 are not stated"
SEARCHED = "published is the best of a search over T and eta_h (Table A4)"
BEST_EPOCH = "published is the best test epoch (Appendix C)"


@dataclass(frozen=True)
class Number:
    """One published accuracy, ``accuracy`` ± ``half``.

    Args:
        accuracy, half: see above.
        how: whose runs and which probe.
        never: why no run here can be compared with it, or "".
        recipe: what it was trained with; None: another network's.
        decay: weight decay added to the gradient under plain Adam; None: the data set's, decoupled (AdamW).
    """

    accuracy: float
    half: float | None = None
    how: str = OWN
    never: str = ""
    recipe: Recipe | None = COMMON
    decay: float | None = None

    def __str__(self) -> str:
        return f"{self.accuracy:.2f}" + ("" if self.half is None else f" ± {self.half:.2f}")


def _quoted(accuracy: float, how: str) -> Number:
    return Number(accuracy, None, f"quoted from {how}", f"quoted; {how}", None)


def _unstated(accuracy: float, what: str) -> Number:
    return Number(accuracy, None, f"the paper's own run; {what}", what)


_ILLING = (
    "Illing 2021: patches of one grey image, coin for positive or negative, 600 epochs; last layer, 1,024 features"
)
_LPL, _LPL_STL10 = (
    f"Halvagal & Zenke 2023: VGG-11, 800 epochs; last layer, 512 features, probe fitted on {labels} labels"
    for labels in ("10,000 of 50,000", "4,500 of 5,000")
)
_SFF = "Zhu 2025: 3 convolutional layers, 24,576 features of noisy copies, squared readout, best test epoch"
_SCFF = "Chen 2025: 3 to 4 convolutional layers, up to 38,400 features of several layers; other digits in its own table"

TABLE2: dict[str, dict[str, Number]] = {  # row: data: number; in the paper's order
    "BP-CLAPP++": {
        "cifar10": Number(80.49, 0.20),
        "stl10": Number(80.36, 0.26),
        "tiny-imagenet": Number(37.55, 0.61),
    },
    "BP-InfoNCE": {
        "cifar10": Number(80.69, 0.84),
        "stl10": Number(81.97, 1.23),
        "tiny-imagenet": Number(36.78, 0.73),
    },
    "Naive CLAPP DFA": {"stl10": _unstated(52.30, "network, probe, scale and form of the feedback are not stated")},
    "Naive CLAPP Predictive Coding": {
        "stl10": _unstated(36.75, f"{NOT_STATED}, where this number stands, too; {SEARCHED}")
    },
    "CLAPP": {"stl10": _quoted(73.6, _ILLING)},
    "LPL": {"cifar10": _quoted(59.4, _LPL), "stl10": _quoted(63.2, _LPL_STL10)},
    "Stochastic FF": {"cifar10": _quoted(76.96, _SFF)},
    "SCFF": {"cifar10": _quoted(80.60, _SCFF), "stl10": _quoted(77.14, _SCFF), "tiny-imagenet": _quoted(35.67, _SCFF)},
    "CLAPP++ (no 2D spatial dependence)": {
        "cifar10": Number(73.21),
        "stl10": Number(75.10),
        "tiny-imagenet": Number(28.18),
    },
    "CLAPP++": {"cifar10": Number(80.51, 0.27), "stl10": Number(78.66, 0.16), "tiny-imagenet": Number(36.63, 0.32)},
    "CLAPP++DFB": {"cifar10": Number(80.65, 0.18), "stl10": Number(79.38, 0.17), "tiny-imagenet": Number(36.70, 0.24)},
    "CLAPP++both": {"cifar10": Number(81.18, 0.18), "stl10": Number(79.62, 0.28), "tiny-imagenet": Number(37.78, 0.67)},
}


def _a3(accuracy: float, recipe: Recipe, *never: str) -> Number:
    decay = 0.0 if recipe == A4_CLAPP else A4_DECAY
    why = "; ".join((NOT_STATED, *never, *([BEST_EPOCH] if recipe == A4_CE else [])))
    return Number(accuracy, None, f"the paper's own run; {why}", why, recipe, decay)


def _pc(accuracy: float, recipe: Recipe) -> Number:
    return _a3(accuracy, recipe, SEARCHED)


TABLE_A3: dict[str, dict[str, Number]] = {
    "cross-entropy, BP": {"cifar10": _a3(72.41, A4_CE)},
    "cross-entropy, PC": {"cifar10": _pc(71.92, A4_CE)},
    "CLAPP objective, BP": {"cifar10": _a3(65.68, A4_CLAPP), "stl10": _a3(78.36, A4_CLAPP)},
    "CLAPP objective, PC": {"cifar10": _pc(45.62, A4_CLAPP), "stl10": _pc(36.75, A4_CLAPP)},
    "LPL objective, BP": {"cifar10": _a3(73.65, A4_LPL), "stl10": _a3(70.29, A4_LPL)},
    "LPL objective, PC": {"cifar10": _pc(47.68, A4_LPL), "stl10": _pc(51.21, A4_LPL)},
}

# Figure 5 prints no numbers; these rows of it stand in Table 2, the last two in Appendix B's text.
FIG5: dict[str, dict[str, Number]] = {
    "CLAPP, last layer": TABLE2["CLAPP"],
    "+ SimCLR views, all layers": TABLE2["CLAPP++ (no 2D spatial dependence)"],
    "+ spatial dependence (CLAPP++)": TABLE2["CLAPP++"],
    "+ direct feedback (CLAPP++DFB)": TABLE2["CLAPP++DFB"],
    "both references (CLAPP++both)": TABLE2["CLAPP++both"],
    "end to end (BP-CLAPP++)": TABLE2["BP-CLAPP++"],
    "CLAPP++, last layer averaged": {"stl10": Number(78.63, how=f"{OWN}; one number, Appendix B's text")},
    "CLAPP++DFB, last layer averaged": {"stl10": Number(79.01, how=f"{OWN}; one number, Appendix B's text")},
}

# The rules' own publications, each under its own network, views and probe.
PEERS: dict[str, dict[str, Number]] = {
    "ff-supervised": {"mnist": _quoted(98.55, "a public implementation: 1.45 % error, Hinton's own 1.36 %")},
    "ff": {"mnist": _quoted(98.63, "Hinton 2022, hybrid images (unverified): 1.37 % error")},
    "scff": {
        "mnist": _quoted(98.7, "Chen 2025: two layers of 2,000, 4,000 features"),
        "cifar10": _quoted(80.8, "Chen 2025: 18,432 features of three layers (80.75 on its front page)"),
        "stl10": _quoted(77.3, "Chen 2025: 38,400 features of two layers"),
        "tiny-imagenet": _quoted(35.7, "Chen 2025"),
    },
    "softhebb": {
        "mnist": _quoted(99.4, "Journé 2023"),
        "cifar10": _quoted(80.3, "Journé 2023: 24,576 features"),
        "stl10": _quoted(76.2, "Journé 2023: four layers"),
    },
    "stochastic-ff": {"cifar10": _quoted(76.96, _SFF)},
    "clapp-illing": {"stl10": _quoted(73.6, _ILLING)},
    "lpl": {"cifar10": _quoted(59.4, _LPL), "stl10": _quoted(63.2, _LPL_STL10)},
}


def mark(number: Number, ours: Sequence[float], differences: Sequence[str]) -> str:
    """ "reproduced", "off", or "not comparable: why".

    Reproduced: the published mean lies inside our 95 % t interval over seeds and our mean inside the published
    interval, where there is one.

    Args:
        number: the published one.
        ours: our accuracies, one a seed.
        differences: how our runs differ from those that gave the number.
    """
    if number.never or differences:
        why = (number.never, *differences) if number.recipe is None else (*differences, number.never)
        return f"not comparable: {'; '.join(filter(None, why))}"
    mean, low, high = t_interval(ours)
    if math.isnan(low):
        return "not comparable: one seed, no interval"
    if (half := mean - low) > WIDEST:
        return f"not comparable: {len(ours)} seeds, an interval of ± {half:.2f} points"
    inside = low <= number.accuracy <= high
    if number.half is None:
        return "reproduced (inside our interval; the paper gives none)" if inside else f"off by {_off(mean, number)}"
    inside = inside and abs(mean - number.accuracy) <= number.half
    return "reproduced" if inside else f"off by {_off(mean, number)}"


def in_own_setting(number: Number, ours: Sequence[float], differences: Sequence[str] = ()) -> str:
    """The mark of a run in the setting that a number was published with; of one seed alone, how far it lies.

    Args:
        number: the published one; what keeps it from other comparisons does not count.
        ours: our accuracies, one a seed.
        differences: what our runs still do otherwise.
    """
    if not differences and len(ours) == 1:
        return f"one seed, {_off(ours[0], number)} points, no interval to judge by"
    return mark(replace(number, never=""), ours, differences)


def _plain(value: object) -> object:
    """As JSON keeps it."""
    return list(value) if isinstance(value, tuple) else value


def _off(mean: float, number: Number) -> str:
    return f"{mean - number.accuracy:+.2f}".replace("-", "−")


def differences(
    number: Number, config: dict[str, Any], protocol: str, facts: Sequence[str], labels: str = "all"
) -> list[str]:
    """How a run and its probe differ from those behind a number, each in a few words.

    Args:
        number: the published one. A quoted one differs in everything, and says itself what was done; of it, what is
            ours.
        config: the run's resolved configuration, as a cell keeps it.
        protocol: of the probe, "fast" or "paper".
        facts: of the images, see ``Images.facts``.
        labels: per class, that the probe was fitted on; "1", "10" or "all".
    """
    few = [] if labels == "all" else [f"{labels} label{'' if labels == '1' else 's'} per class"]
    if number.recipe is None:
        return [f"ours: {', '.join([*_ours(config, protocol, facts), *few])}"]
    encoder = config["encoder"]
    found: list[str] = []
    if encoder["name"] != "vgg6":
        found.append(f"{own.short_name(encoder['name'])} for vgg6")
    elif encoder["width"] != list(VGG6_CHANNELS):
        found.append(_width(encoder))
    for key, theirs in zip(("epochs", "batch_size", "lr"), number.recipe, strict=True):
        if config[key] != theirs:
            found.append(f"{key.replace('_', ' ')} {config[key]:g} for {theirs:g}")
    optimizer = "adam-l2" if number.decay else "adam"
    if config["optimizer"] != optimizer:
        found.append(f"optimizer {config['optimizer']} for {optimizer}")
    for key, theirs in PLAIN.items():
        if config[key] != theirs:
            found.append(f"{key} {config[key]} for {theirs}")
    spec = spec_for(config["data"])
    decay = 0.0 if config["rule"] == "bp-infonce" else spec.weight_decay if number.decay is None else number.decay
    if config["weight_decay"] != decay:
        found.append(f"weight decay {config['weight_decay']:g} for {decay:g}")
    views = {k: _plain(v) for k, v in asdict(spec.augmentation).items()}
    others = views | {k: _plain(v) for k, v in config["augmentation"].items()}  # an older run lacks younger fields
    if others != views or config.get("views"):
        found.append("other views")
    changed = [k for k, v in SCORE.items() if config["rule_options"].get(k, v) != v]
    if changed:
        found.append(f"another {', '.join(changed)}")
    if config["limit_images"]:
        found.append(f"{config['limit_images']:,} images")
    if protocol != "paper":
        found.append(f"{protocol} probe")
    return [*found, *_of_images(facts), *few]


def _width(encoder: dict[str, Any]) -> str:
    return f"width {encoder['width'][0] / VGG6_CHANNELS[0]:g}"


def _ours(config: dict[str, Any], protocol: str, facts: Sequence[str]) -> Iterator[str]:
    """What our run and its probe were, in a few words."""
    encoder, limit = config["encoder"], config["limit_images"]
    yield own.short_name(encoder["name"])
    if encoder["name"] == "vgg6":
        yield _width(encoder)
    yield f"epochs {config['epochs']}"
    yield f"{limit:,} images" if limit else "all images"
    yield f"{protocol} probe"
    yield from _of_images(facts)


def _of_images(facts: Sequence[str]) -> Iterator[str]:
    """What of the images' facts sets a number apart: how many labels the probe saw, of which files, of how many."""
    for fact in facts:
        part, drawn, _ = fact.partition(" images, drawn at random")
        if drawn:
            yield f"probe fitted on {part} labels"
        elif "JPEG" in fact or "not the full set" in fact:
            yield fact
