"""What training at the paper's sizes would take, by arithmetic: the tables of docs/what-it-would-take.md.

A step's seconds = multiply-adds at a share of the card's peak + bytes over its bandwidth + bytes over the link, one
after the other. No GPU was measured; what is assumed stands in the constants below and on the page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from localssl import encoders, engine, markdown, rules, traffic
from localssl.data.specs import default_patches
from localssl.encoders import Encoder
from localssl.report import arithmetic, benchmark_tables
from localssl.rules import ScoreRule

ACTIVITY, WEIGHT = 2, 4  # bytes of a number: bf16 activity, float32 weights, moments and gradients
EFFICIENCY = 0.3  # share of the peak that convolutions and products are assumed to reach
SERVER, NETWORK = 8, 50e9  # cards that share fast links; bytes a second and card beyond: 400 Gbit/s
PUBLISHED = ("STL-10", "A100", 4, 5.0)  # paper, Appendix B: "approximately 5 hours on 4 NVIDIA A100 GPUs"


@dataclass(frozen=True)
class Card:
    """A GPU by its vendor's data sheet: dense bf16 FLOP/s, bytes a second of memory and of links in one direction."""

    peak: float
    memory: float
    link: float


CARDS = {"A100": Card(312e12, 2.039e12, 300e9), "H100": Card(989e12, 3.35e12, 450e9)}  # both SXM, 80 GB


@dataclass(frozen=True)
class Task:
    """A training run of the paper's.

    Args:
        images: that are trained on. epochs: over them. batch: images a card. size: their side.
        encoder: makes the blocks. patches: of their readouts.
    """

    images: int
    epochs: int
    batch: int
    size: int
    encoder: Callable[[], Encoder]
    patches: tuple[int, ...]


def vgg8() -> Encoder:
    """The eight blocks of the ImageNet setting."""
    channels = (3, 128, 256, 512, 512, 1024, 1024, 1024, 1024)
    pools = (False, True, True, False, True, True, False, True)
    blocks = [encoders.conv_block(i, o, p) for i, o, p in zip(channels[:-1], channels[1:], pools, strict=True)]
    return Encoder.from_blocks(blocks)


TASKS = {
    "STL-10": Task(100_000, 300, 32, 96, encoders.vgg6, default_patches("vgg6", 96) or ()),
    "ImageNet": Task(1_281_167, 50, 64, 224, vgg8, (28, 28, 14, 14, 14, 7, 7, 7)),
}
COUNTS = (1, SERVER, 64, 512)  # cards
CASES = (
    ("bp-clapp++", "dense"),
    *((rule, kind) for rule in ("clapp++", "clapp++dfb", "clapp++both") for kind in ("dense", "low-rank-frozen")),
)


@dataclass(frozen=True)
class Seconds:
    """Of one step: products, memory traffic, communication between cards."""

    products: float
    memory: float
    link: float

    @property
    def all(self) -> float:
        """One after the other."""
        return self.products + self.memory + self.link


def made(rule: str, kind: str) -> ScoreRule:
    """The rule with projections of a kind, of rank 64 where they have one."""
    found = rules.get(rule, projection=kind, rank=64)
    assert isinstance(found, ScoreRule)
    return found


@cache
def cost(name: str, rule: str, kind: str) -> arithmetic.Cost:
    """Of one card's step."""
    task = TASKS[name]
    with torch.device("meta"):
        encoder = task.encoder()
    return arithmetic.step(encoder, made(rule, kind), (3, task.size, task.size), task.patches, task.batch)


@cache
def layers(name: str, rule: str) -> tuple[arithmetic.Layer, ...]:
    """The blocks as the rule reads them."""
    task = TASKS[name]
    with torch.device("meta"):
        encoder = task.encoder()
    patches = rules.get(rule).patches(list(task.patches))
    return tuple(arithmetic.layers(encoder, (3, task.size, task.size), patches))


def moved(name: str, rule: str, kind: str) -> float:
    """Bytes that a step reads and writes besides what products keep on the chip.

    Every pass of a block reads its input and writes, or reads, its drive twice and its output once (two passes of local
    rules, three of backpropagation); B is read for g; AdamW reads and writes a weight and two moments, and gradients
    that are there as a whole (all but a dense B's, which is made in tiles) are written and read.
    """
    need = cost(name, rule, kind)
    units = sum(layer.x + 2 * layer.a + layer.z for layer in layers(name, rule))
    passes = 3 if by_autograd(rule) else 2
    activity = ACTIVITY * 2 * TASKS[name].batch * passes * units
    tiled = need.b if kind == "dense" and passes == 2 else 0
    return activity + WEIGHT * (need.b + need.fixed + 6 * need.parameters + 2 * (need.parameters - tiled))


@cache
def sizes(name: str, rule: str, kind: str, cards: int) -> traffic.Sizes:
    """What the exchange of a step's changes of B depends on."""
    found, task = made(rule, kind), TASKS[name]
    lengths = [layer.d for layer in layers(name, rule)]
    with torch.device("meta"):
        sizes = engine.sizes(found, found.build(lengths), lengths, task.batch, cards)
    return sizes._replace(pace=traffic.GPU)


def as_matrices(name: str, rule: str, kind: str, cards: int, way: str) -> frozenset[int]:
    """The layers whose changes of B are summed as matrices, as ``--exchange`` has it."""
    found = sizes(name, rule, kind, cards)
    return {"matrices": frozenset(range(len(found.layers))), "rows": frozenset()}.get(way, traffic.choose(found))


def exchanged(name: str, rule: str, kind: str, cards: int, way: str = "auto") -> float:
    """Bytes that a card sends in a step: the blocks' gradients in a ring, and what the changes of B take."""
    need, ring = cost(name, rule, kind), 2 * (cards - 1) / cards * WEIGHT
    if by_autograd(rule):
        return ring * need.parameters
    chosen = as_matrices(name, rule, kind, cards, way)
    return ring * need.encoder + WEIGHT * traffic.numbers(sizes(name, rule, kind, cards), chosen)


def by_autograd(rule: str) -> bool:
    """Whether changes of B are gradients like all others, never made of rows."""
    return rules.get(rule).credit == "backprop"


def seconds(
    name: str, rule: str, kind: str, card: str, cards: int, efficiency: float = EFFICIENCY, way: str = "auto"
) -> Seconds:
    """Of a step on ``cards`` cards, each with the task's batch; a change of B made of rows every card makes whole."""
    need, chip, task = cost(name, rule, kind), CARDS[card], TASKS[name]
    link = chip.link if cards <= SERVER else NETWORK
    between = exchanged(name, rule, kind, cards, way) / link if cards > 1 else 0.0
    more = 0
    if cards > 1 and not by_autograd(rule):
        chosen = as_matrices(name, rule, kind, cards, way)
        rows = sum(layer.weights for i, layer in enumerate(sizes(name, rule, kind, cards).layers) if i not in chosen)
        more = 2 * 2 * task.batch * (cards - 1) * rows  # g and ΔB, of two views
    products = 2 * (need.products + more) / (chip.peak * efficiency)
    return Seconds(products, moved(name, rule, kind) / chip.memory, between)


def hours(name: str, step: float, cards: int) -> float:
    """Of the whole run, for seconds a step."""
    task = TASKS[name]
    return task.epochs * task.images / (task.batch * cards) * step / 3600


def published_efficiency() -> float:
    """Share of the card's bf16 peak that the published run's multiply-adds come to, its views and all else included."""
    name, card, cards, took = PUBLISHED
    steps = TASKS[name].epochs * TASKS[name].images / TASKS[name].batch
    return 2 * cost(name, "clapp++", "dense").products * steps / (took * 3600 * cards * CARDS[card].peak)


def step_table() -> str:
    """What a card's step needs."""
    lines: list[list[object]] = []
    for name, task in TASKS.items():
        for rule, kind in CASES:
            need = cost(name, rule, kind)
            held = WEIGHT * (3 * need.parameters + need.fixed)
            counted = [f"{need.products / task.batch / 1e9:,.1f} G"]
            counted += [f"{n / 1e6:,.1f} M" for n in (need.parameters, need.b)]
            counted += [f"{n / 1e9:,.2f} GB" for n in (held, ACTIVITY * need.activity)]
            lines.append([name, rule, kind, task.batch, *counted])
    head = ["data", "rule", "B", "images", "products an image", "parameters", "of them B"]
    table = markdown.table([*head, "weights, moments", "activity"], lines)
    return f"{table}\n\nOf pools' indices, whole numbers that do not shrink in bf16, half the bytes are counted."


def hours_table() -> str:
    """Hours of a run by cards, at three efficiencies: the bound, the assumed one and the published run's."""
    lines: list[list[str]] = []
    for name in TASKS:
        for rule, kind in CASES:
            cells: list[str] = []
            for cards in COUNTS:
                shares = (1.0, EFFICIENCY, published_efficiency())
                found = [hours(name, seconds(name, rule, kind, "H100", cards, e).all, cards) for e in shares]
                cells.append(" / ".join(f"{h:,.{0 if h >= 10 else 2 if h >= 0.1 else 3}f}" for h in found))
            lines.append([name, rule, kind, *cells])
    return markdown.table(["data", "rule", "B", *(f"hours on {k}" for k in COUNTS)], lines)


def parts_table() -> str:
    """Where a step's time goes at the assumed efficiency."""
    several = [k for k in COUNTS if k > 1]
    lines: list[list[str]] = []
    for name in TASKS:
        for rule, kind in CASES:
            alone = seconds(name, rule, kind, "H100", 1)
            times = [alone.products, alone.memory]
            times += [s.all - alone.all for s in (seconds(name, rule, kind, "H100", k) for k in several)]
            lines.append([name, rule, kind, *(f"{1e3 * t:,.1f}" for t in times)])
    head = ["data", "rule", "B", "products, ms", "memory, ms", *(f"exchange on {k}, ms" for k in several)]
    return markdown.table(head, lines)


def link_table() -> str:
    """What cards send for a step: changes of B as matrices, as rows, and as ``--exchange auto`` chooses."""
    lines: list[list[object]] = []
    for name in TASKS:
        for rule, kind in CASES:
            for cards in COUNTS[1:]:
                ways = ("matrices", "rows", "auto") if not by_autograd(rule) else ("matrices",)
                alone = seconds(name, rule, kind, "H100", 1)
                found = [seconds(name, rule, kind, "H100", cards, way=way) for way in ways]
                sent = [f"{exchanged(name, rule, kind, cards, way) / 1e6:,.0f}" for way in ways]
                took = [f"{1e3 * (s.all - alone.all):,.2f}" for s in found]
                none = ["none"] * (3 - len(ways))
                lines.append([name, rule, kind, cards, *sent, *none, *took, *none])
    head = ["data", "rule", "B", "cards", "matrices, MB", "rows, MB", "auto, MB"]
    return markdown.table([*head, "matrices, ms", "rows, ms", "auto, ms"], lines)


def assumptions_table() -> str:
    """The cards, and what the published run comes to."""
    head = ["card", "bf16 FLOP/s", "memory, B/s", "links within a server, B/s", "beyond"]
    beyond = f"{NETWORK / 1e9:.0f} G"
    lines = [
        [card, f"{c.peak / 1e12:,.0f} T", f"{c.memory / 1e12:.2f} T", f"{c.link / 1e9:.0f} G", beyond]
        for card, c in CARDS.items()
    ]
    name, card, cards, took = PUBLISHED
    share = published_efficiency()
    return (
        f"{markdown.table(head, lines)}\n\n"
        f"{name}, {took:g} hours on {cards} {card}: {share * CARDS[card].peak / 1e12:.1f} TFLOP/s a card, "
        f"{100 * share:.0f} % of its peak. Assumed for our own steps: {100 * EFFICIENCY:.0f} %."
    )


def measured_table() -> str:
    """How well multiply-adds alone tell the measured ratios of step.json; days on the measured machine."""
    lines: list[list[str]] = []
    behind: list[float] = []
    for r in benchmark_tables.rows("step"):
        ours = r["layout"] == "ours" and not r["views"] and r["engine"] == "hebbian"
        if ours and r["against"] == benchmark_tables.BASE and "moment" not in r["rule"]:
            kind = r["rule"].partition(", B ")[2].removesuffix(" 64") or "dense"
            mine = _cifar10(r["rule"].split(",")[0], kind, r["width"], r["batch"])
            ratio = mine.products / _cifar10(*CASES[0], r["width"], r["batch"]).products
            behind.append(r["ratio"] / ratio)
            lines.append([r["rule"], f"{r['width']:g}", f"{r['ratio']:.3f}", f"{ratio:.3f}", f"{behind[-1]:.2f}"])
    table = markdown.table(["rule", "width", "measured", "by products", "measured / by products"], lines)
    return f"{table}\n\nThe last column lies between {min(behind):.2f} and {max(behind):.2f}.\n\n{_days()}"


def _cifar10(rule: str, kind: str, width: float, batch: int) -> arithmetic.Cost:
    with torch.device("meta"):
        encoder = encoders.vgg6(width)
    return arithmetic.step(encoder, made(rule, kind), (3, 32, 32), default_patches("vgg6", 32) or (), batch)


def _days() -> str:
    """Days on the machine whose rates ``growth.json`` has."""
    record = benchmark_tables.record("growth")
    if record is None:
        return "On the machine of the benchmarks: `benchmarks/growth.py` has not been run yet."
    rates = record["rates"]
    largest = max(r["size"] for r in record["rows"])
    where = record.get("processor", "the machine of the benchmarks")
    said = (
        f"On {where} ({record['threads']} threads), by the rates of growth.json (commit {record['commit']}). They are "
        f"fitted to steps on images of at most {largest} pixels a side, and miss those by "
        f"{100 * rates['median_error']:.1f} % in the median, {100 * rates['largest_error']:.1f} % at most; ImageNet's "
        f"{TASKS['ImageNet'].size} pixels are an extrapolation, whose error is not known."
    )
    lines: list[list[str]] = []
    for name, task in TASKS.items():
        for rule, kind in CASES:
            need = cost(name, rule, kind)
            step = (
                rates["seconds_a_product"] * need.convolutions
                + rates["seconds_a_product_of_b"] * need.projections
                + rates["seconds_a_parameter"] * need.parameters
                + rates["seconds_a_step"]
            )
            lines.append([name, rule, kind, f"{task.epochs * task.images / task.batch * step / 86400:,.0f}"])
    return f"{said}\n\n{markdown.table(['data', 'rule', 'B', 'days'], lines)}"
