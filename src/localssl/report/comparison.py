"""The comparison's table: numbers as CSV, the same table to read as Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from localssl import markdown
from localssl.system.files import write_text

Interval = tuple[float, float, float]  # mean, low, high; NaN ends where there is one value


@dataclass(frozen=True)
class Line:
    """One row.

    Args:
        label: the rule, or the untrained encoder.
        seeds: number of seeds; 0 where the row failed.
        accuracy: by budget of labels, in percent, linear probe on all blocks.
        gain: by budget, paired differences to the untrained encoder of the same seed; empty for that one itself.
        blocks: by block, accuracy of the linear probe on it alone with the largest budget.
        align: by block, cosine with backpropagation.
        images_per_second, peak_memory_mib, gpu_memory_mib, lr: of training, means over seeds; None: there was none.
        parameters_encoder, parameters_rule: numbers of parameters.
        budget: how many learning rates were tried.
        failed: the reason in one line, or None.
    """

    label: str
    seeds: int = 0
    accuracy: Mapping[str, Interval] = field(default_factory=dict[str, Interval])
    gain: Mapping[str, Interval] = field(default_factory=dict[str, Interval])
    blocks: Mapping[str, Interval] = field(default_factory=dict[str, Interval])
    align: Mapping[str, Interval] = field(default_factory=dict[str, Interval])
    images_per_second: float | None = None
    peak_memory_mib: float | None = None
    gpu_memory_mib: float | None = None
    parameters_encoder: int | None = None
    parameters_rule: int | None = None
    lr: float | None = None
    budget: str = ""
    failed: str | None = None


def plus_minus(interval: Interval | None, digits: int = 2, sign: bool = False) -> str:
    """ "80.51 ± 0.27", without the interval where one value gives none; "" for None."""
    if interval is None:
        return ""
    mean, _, high = interval
    text = f"{mean:+.{digits}f}" if sign else f"{mean:.{digits}f}"
    return text.replace("-", "−") + ("" if math.isnan(high) else f" ± {high - mean:.{digits}f}")


def count(n: int | None) -> str:
    """A number of parameters to read: "4.1 M"."""
    if n is None:
        return ""
    return f"{n / 1e6:.2f} M" if n >= 1e6 else f"{n / 1e3:.1f} k" if n >= 1e4 else str(n)


def to_read(lines: Sequence[Line], budgets: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    gpu = any(line.gpu_memory_mib for line in lines)
    of = {b: "all labels" if b == "all" else f"{b} label{'' if b == '1' else 's'}/class" for b in budgets}
    header = ["rule", *(f"accuracy, {of[b]} (%)" for b in budgets)]
    header += [f"above untrained, {of[b]} (points)" for b in budgets]
    header += ["cosine with BP, block 1, 2, …", "images/s", "peak memory (MiB)", *(["GPU memory (MiB)"] if gpu else [])]
    header += ["parameters of the encoder", "of the rule", "learning rate", "rates tried"]
    rows: list[list[str]] = []
    for line in lines:
        row = [line.label]
        row += ["failed" if line.failed else plus_minus(line.accuracy.get(b)) for b in budgets]
        row += [plus_minus(line.gain.get(b), sign=True) for b in budgets]
        row.append(" ".join(f"{i[0]:.2f}".replace("-", "−") for i in line.align.values()))
        row += [_whole(line.images_per_second), _whole(line.peak_memory_mib)]
        row += [_whole(line.gpu_memory_mib)] if gpu else []
        row += [count(line.parameters_encoder), count(line.parameters_rule)]
        rows.append([*row, "" if line.lr is None else f"{line.lr:g}", line.budget])
    return header, rows


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def numbers(lines: Sequence[Line], budgets: Sequence[str]) -> tuple[list[str], list[list[object]]]:
    """Header and rows for programs: every mean with both ends of its interval."""
    blocks = max((line.align for line in lines), key=len)
    alone = max((line.blocks for line in lines), key=len)
    groups = [(f"accuracy_{b}", "accuracy", b) for b in budgets] + [(f"gain_{b}", "gain", b) for b in budgets]
    groups += [(f"accuracy_block_{b}", "blocks", b) for b in alone] + [(f"cosine_{b}", "align", b) for b in blocks]
    plain = ["images_per_second", "peak_memory_mib", "gpu_memory_mib", "parameters_encoder", "parameters_rule", "lr"]
    header = ["rule", "status", "seeds"]
    header += [name + end for name, _, _ in groups for end in ("", "_low", "_high")]
    header += [*plain, "rates_tried", "reason"]
    rows: list[list[object]] = []
    for line in lines:
        row: list[object] = [line.label, "failed" if line.failed else "done", line.seeds]
        for _, attribute, key in groups:
            found: Interval | None = getattr(line, attribute).get(key)
            row += ["", "", ""] if found is None else ["" if math.isnan(v) else round(v, 4) for v in found]
        row += ["" if getattr(line, name) is None else getattr(line, name) for name in plain]
        rows.append([*row, line.budget, line.failed or ""])
    return header, rows


def to_markdown(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], below: Sequence[str]) -> None:
    """A Markdown table and paragraphs below it."""
    write_text(path, "\n\n".join([markdown.table(header, rows), *filter(None, below)]) + "\n")


_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "+": "{+}",  # two in a row stay two
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "…": r"\ldots{}",
}


def latex(text: str) -> str:
    """Plain text for LaTeX."""
    return "".join(_LATEX.get(c, c) for c in text)


def to_latex(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], below: Sequence[str]) -> None:
    """A tabular that needs no package, and as comments what stands below the others."""
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\hline"]
    lines += [" & ".join(latex(cell) for cell in header) + r" \\", r"\hline"]
    lines += [" & ".join(latex(cell) for cell in row) + r" \\" for row in rows]
    lines += [r"\hline", r"\end{tabular}", *(f"% {' '.join(text.split())}" for text in below if text)]
    write_text(path, "\n".join(lines) + "\n")
