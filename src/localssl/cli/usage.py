"""What --help shows: every command in a line; a command's usual flags, briefly, with examples; all with --help-all."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import textwrap
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import localssl
from localssl.cli.flags import commands
from localssl.errors import UsageError, unknown
from localssl.runs.kinds import UNIONS

HELP = ("-h", "--help", "--help-all")
TOP = ("--help", "--version", "--citation", "--completion")  # flags that stand before a command
WIDTH, COLUMN = 80, 24  # of a line; where what a flag means begins
SCREEN = 40  # lines that --help may take; where a command's whole page is longer, it is brief

EXAMPLES = {
    "train": (
        "--rule clapp++dfb --data digits --out runs/x",
        "--rule clapp++ --data cifar10 --width 0.25 --dry-run",
        "--rule mine.py:MyRule --data imagefolder:photos --out runs/mine",
        "--config runs/x --seed 1 --out runs/y",
        "--resume --out runs/x",
    ),
    "probe": ("runs/x", "runs/x --labels 1 10 all", "runs/mine --own mine.py", "runs/x --protocol paper --epochs 100"),
    "align": ("runs/x", "runs/x --reference bp-clapp++ --batches 20"),
    "compare": (
        "--rules clapp++ lpl ff --data digits --out runs/compare",
        '--rules "clapp f=softplus" --data digits --out runs/f',
    ),
    "certify": ("--rule clapp++dfb bp-clapp++", "--rule mine.py:MyRule --out mine.csv"),
    "theory": ("", "--full"),
    "reproduce": ("", "demo --seeds 5", "fig4c --scale paper --data-root data"),
    "report": ("runs/x", "runs/x runs/y --images 200"),
    "export": ("runs/x --onnx", "runs/x --rule", "runs/x --embeddings --data digits --out z.npy"),
    "doctor": ("", "--quick --data-root data"),
}

GROUPS: dict[str, tuple[tuple[str, str], ...]] = {  # titles and flags; the first stands in --help
    "train": (
        (
            "usual flags",
            "rule data out config data-root epochs width seed rule-options encoder lr batch-size limit-images device "
            "threads resume dry-run",
        ),
        ("data and views", "download image-size skip-bad memory views view-strength own"),
        ("encoder and rule", "encoder-options patches engine precision"),
        ("optimiser", "optimizer weight-decay schedule on-nan"),
        ("learning in integers", "bits weight-noise dead mismatch"),
        ("several processes", "devices nodes across exchange shard-b patience pipeline split staleness"),
        ("what is measured and kept", "probe-every align-every checkpoint-every trackers expect no-report report"),
    ),
    "compare": (
        ("usual flags", "rules data out config epochs seeds jobs encoder width labels limit-images data-root report"),
        ("data and views", "image-size skip-bad views own"),
        ("training", "encoder-options batch-size patches precision search-lr search-epochs threads"),
        ("measurements", "probe-images align-batches"),
        ("learning in integers", "bits weight-noise dead mismatch"),
    ),
}

BESIDE = (
    "localssl COMMAND --help     its usual flags; --help-all: all of them",
    "localssl --version          the version",
    "localssl --citation         how to cite, as BibTeX",
    "localssl --completion SHELL completion for bash or zsh",
    "",
    "for instance: localssl train --rule clapp++dfb --data digits --out runs/x",
    "exit status: 0 done, 1 could not go on, 2 bad input, 130 stopped by the user",
)


def asked_for(arguments: list[str]) -> str | None:
    """The page of help that a command line asks for, "help train", "--help" or "train --help"; None: it asks for none.

    Raises:
        UsageError: help for what is no command.
    """
    first, *rest = arguments
    if first in ("help", *HELP):
        named = [word for word in rest if word not in HELP]
        if not named:
            return overview()
        if named[0] not in commands():
            raise unknown("command", named[0], commands())
        return page(named[0], "--help-all" in arguments)
    asked = first in commands() and set(HELP).intersection(rest)
    return page(first, "--help-all" in rest) if asked else None


def refuse_unknown(arguments: list[str]) -> None:
    """Refuse flags that the command does not have; tyro's own message proposes those of other commands, too.

    Raises:
        UsageError: names the first of them, and the nearest that there are; or a flag where a command should be.
    """
    first = arguments[0]
    if first.startswith("-"):
        flag = first.partition("=")[0]
        if flag in TOP:
            raise UsageError(f"{flag} stands alone: leave out {' '.join(arguments[1:]) or first.partition('=')[2]!r}")
        near = difflib.get_close_matches(flag, TOP, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}? " if near else "flags stand behind a command, "
        raise UsageError(f"localssl has no flag {flag}: {hint}localssl --help shows what there is")
    if first not in (kinds := commands()):
        return
    known = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(kinds[arguments[0]])]
    for word in arguments[1:]:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            near = " or ".join(difflib.get_close_matches(flag, known, n=2, cutoff=0.8))
            hint = f"did you mean {near}? " if near else ""
            raise UsageError(f"{arguments[0]} has no flag {flag}: {hint}localssl {arguments[0]} --help-all shows them")


def overview() -> str:
    """Every command in a line: what ``localssl --help`` shows."""
    lines = ["usage: localssl COMMAND [flags]", "", *textwrap.wrap(str(localssl.__doc__), WIDTH), ""]
    for name, kind in commands().items():
        first = (kind.__doc__ or "").splitlines()[0]
        lines += textwrap.wrap(f"  {name:10s} {first}", WIDTH, subsequent_indent=" " * 13)
    return "\n".join([*lines, "", *BESIDE])


def page(command: str, everything: bool = False) -> str:
    """What ``localssl COMMAND --help`` shows, or ``--help-all``."""
    groups = _groups(command)
    whole = _page(command, groups, brief=False)
    if everything or (len(groups) == 1 and len(whole) <= SCREEN):
        return "\n".join(whole)
    more = ", ".join(["these in full", *(title for title, _ in groups[1:])])
    rest = textwrap.wrap(f"localssl {command} --help-all: {more}", WIDTH)
    return "\n".join([*_page(command, groups[:1], brief=True), "", *rest])


def _page(command: str, groups: list[tuple[str, list[str]]], brief: bool) -> list[str]:
    """The lines of a page with these groups of flags; brief: what comes first of every text."""
    kind = commands()[command]
    fields, texts = {f.name: f for f in dataclasses.fields(kind)}, _texts(kind)
    hints = get_type_hints(kind, include_extras=True)
    places = [name for name in fields if _is_place(hints[name])]
    words = " ".join([*(f"[{n.upper()} …]" if _many(hints[n]) else n.upper() for n in places), "[flags]"])
    about = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    lines = [f"usage: localssl {command} {words}", "", *_paragraphs(about[: 2 if brief else None]), ""]
    lines += ["for instance:", *(f"  localssl {command} {example}".rstrip() for example in EXAMPLES[command])]
    for name in places:
        lines += ["", *_entry(name.upper(), texts[name])]
    for title, names in groups:
        lines += ["", f"{title}:"]
        for name in names:
            text = _text(fields[name], _first(texts[name]) if brief else texts[name])
            lines += _entry(f"--{name.replace('_', '-')} {_takes(hints[name])}".rstrip(), text)
    return lines


def _groups(command: str) -> list[tuple[str, list[str]]]:
    """Titles and fields; a command without groups has one."""
    hints = get_type_hints(commands()[command], include_extras=True)
    found = GROUPS.get(command, (("flags", " ".join(name for name, hint in hints.items() if not _is_place(hint))),))
    return [(title, group.replace("-", "_").split()) for title, group in found]


def _texts(kind: type[Any]) -> dict[str, str]:
    """The text under every field of a dataclass and of those it is made from, in one line."""
    texts: dict[str, str] = {}
    for part in reversed([part for part in kind.__mro__ if dataclasses.is_dataclass(part)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                texts[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return texts


def _first(text: str) -> str:
    """The first sentence of a flag's text, and what its default is."""
    first, *rest = re.split(r"(?<=\.)(?<!e\.g\.) (?=[A-Z0-9])", text)
    return " ".join([first, *(sentence for sentence in rest if sentence.startswith("Default:"))])


def _text(field: dataclasses.Field[Any], text: str) -> str:
    """What a flag means, with its default where that says something the text does not."""
    default = field.default
    if default is dataclasses.MISSING:
        return f"{text} Needed."
    silent = isinstance(default, bool) or default in (None, ()) or "default" in text.lower()
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return text if silent else f"{text} [{shown}]"


def _takes(kind: Any) -> str:
    """What follows a flag: INT, PATH, one|other; nothing after a switch."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in UNIONS:
        kind = next(k for k in get_args(kind) if k is not types.NoneType)
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return f"{_takes(get_args(kind)[0]).removesuffix(' …')} …"
    return {bool: "", str: "TEXT"}.get(kind, str(kind.__name__).upper())


def _is_place(kind: Any) -> bool:
    """Whether a field has its place on the line instead of a name; tyro marks those."""
    return get_origin(kind) is Annotated and any("positional" in str(mark).lower() for mark in get_args(kind)[1:])


def _many(kind: Any) -> bool:
    return get_origin(get_args(kind)[0]) is tuple


def _paragraphs(paragraphs: list[str]) -> Iterable[str]:
    for number, paragraph in enumerate(paragraphs):
        yield from ([""] if number else [])
        yield from textwrap.wrap(" ".join(paragraph.split()), WIDTH)


def _entry(flag: str, text: str) -> list[str]:
    """A flag and what it means, beside each other where the flag is short."""
    indent = " " * COLUMN
    lines = textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    if len(flag) + 3 < COLUMN:
        return [f"  {flag}{lines[0][len(flag) + 2 :]}", *lines[1:]]
    return [f"  {flag}", *lines]
