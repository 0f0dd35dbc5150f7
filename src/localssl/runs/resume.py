"""Where a run begins: anew, or at its last checkpoint and with the settings it was begun with."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from localssl import alignment, encoders, own, rules
from localssl.data.sources import Images
from localssl.data.specs import spec_for
from localssl.encoders import registry
from localssl.errors import UsageError
from localssl.optimizer import power_of_two
from localssl.runs import checkpoint
from localssl.runs.config import RunConfig, TrainConfig, parse_options
from localssl.runs.limits import check
from localssl.runs.run import (
    Run,
    about_rate,
    by_autograd,
    check_memory,
    get_rule,
    manifest_of,
    memory_of,
    open_config,
    open_run,
    resolve,
    run_in,
    sketch,
    stored_root,
    train_split,
    wished,
)

# May change on the way: they do not touch the weights (an engine their last digits), or stay as they were.
FREE = ("skip_bad", "probe_every", "align_every", "mean", "std", "engine")
State = dict[str, Any]


def begin(config: TrainConfig, out: Path, report: Callable[[str], None]) -> tuple[RunConfig, Images, State | None]:
    """The resolved configuration, the images, and the checkpoint to go on from (None: from the beginning).

    Raises:
        UsageError: anything that the user must mend; nothing was written or changed.
    """
    state = stored = None
    begins = False  # by flags alone
    if config.resume:
        state, stored = _last(config, out, report)
        if stored is not None:
            _check_trained_here(Run(out, stored))
    elif taken := run_in(out):
        raise UsageError(f"{out} holds a run already ({taken}); add --resume to go on with it, or choose another --out")
    if config.config is not None:
        begun = open_config(config.config)
        _check_trained_here(begun)
        if config.bits not in (None, begun.config.bits):
            raise UsageError(
                f"--bits {config.bits}: {config.config} is what other flags came to; give those, --config {begun.path}"
            )
        resolved, images = _stored_and_typed(begun, config)
    elif stored is not None and (config.rule is None or config.data is None):
        resolved, images = _stored_and_typed(Run(out, stored), config)
    else:
        resolved, images = resolve(config)
        begins = state is None
    stored_too = {name: getattr(resolved, name) for name in ("bits", "weight_noise", "dead", "mismatch", "staleness")}
    check(dataclasses.replace(config, **stored_too))  # what was typed goes together with what was stored
    if len(images) < resolved.batch_size:
        raise UsageError(
            f"{resolved.data} has {len(images)} training images, fewer than a batch of {resolved.batch_size}; "
            f"lower --batch-size"
        )
    if state is not None and stored is not None:
        _check_settings(out, resolved, stored)
        _check_images(out, resolved, stored, images, report)
        if state["step"] > len(images) // resolved.batch_size * resolved.epochs:
            raise UsageError(
                f"{out} has gone beyond {resolved.epochs} epochs already (step {state['step']}); raise --epochs"
            )
        engine = stored.engine if config.engine == "auto" else config.engine
        resolved = dataclasses.replace(resolved, mean=stored.mean, std=stored.std, engine=engine)
        report(
            f"resuming {out} at step {state['step']}: {resolved.rule} on {resolved.data}, {resolved.epochs} epochs, "
            f"lr {resolved.lr:g}, batches of {resolved.batch_size}"
        )
        threads = manifest_of(out, "environment").get("threads", torch.get_num_threads())
        if threads != torch.get_num_threads():
            report(f"begun with {threads} threads, now {torch.get_num_threads()}: the last digits may differ")
    resolved = _alignable(config, resolved, report)
    learner = sketch(resolved)
    check_memory(resolved, learner)
    if begins and by_autograd(config, resolved, learner):
        resolved = dataclasses.replace(resolved, engine="autograd")
        report("engine: autograd (the faster one for so small a step; --engine hebbian takes the other)")
    if stored is None and config.config is None and (line := about_rate(config, resolved)):
        report(line)
    return resolved, images, state


def found_again(config: TrainConfig, out: Path) -> TrainConfig:
    """For a run that goes on or repeats another: the data are where they were, unless the user says otherwise."""
    begun = out if config.resume else None
    if config.config is not None:
        begun = config.config.parent
    if begun is None or config.data_root is not None:
        return config
    return dataclasses.replace(config, data_root=stored_root(begun))


def check_folder(out: Path) -> None:
    """Refuse a folder that cannot be written, before it is made or a data set is read.

    Raises:
        UsageError: says why not.
    """
    place = next(p for p in (out, *out.absolute().parents) if os.path.exists(p))
    if not place.is_dir():
        raise UsageError(f"--out {out}: {place} is a file; name a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out}: no permission to write in {place}; name another folder")
    if (out / "cells").is_dir() and not run_in(out):  # whose flags.yaml the run's would replace
        raise UsageError(f"{out} holds a comparison or an experiment (cells); choose another --out")


def _last(config: TrainConfig, out: Path, report: Callable[[str], None]) -> tuple[State | None, RunConfig | None]:
    """The last checkpoint and the configuration stored with it, or without one that of the folder."""
    state, notes = checkpoint.read_last(out)
    for note in notes:
        report(note)
    if state is not None:
        return state, RunConfig.from_yaml(state["config"], f"the checkpoint in {out}")
    stored = open_run(out).config if (out / "config.yaml").is_file() else None
    if stored is None and config.config is None and (config.rule is None or config.data is None):
        raise UsageError(f"{out} holds no checkpoint and no config.yaml to go on with; begin with --rule and --data")
    report(f"no checkpoint in {out} yet: starting from the beginning")
    return None, stored


def _stored_and_typed(run: Run, typed: TrainConfig) -> tuple[RunConfig, Images]:
    """A run's own settings with the flags that were typed beside --resume, where they are not the defaults."""
    stored = run.config
    fields = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    flags = {name: value for name in fields if (value := getattr(typed, name)) != fields[name]}
    known = {field.name for field in dataclasses.fields(RunConfig)} - {"encoder"}
    changes = {name: value for name, value in flags.items() if name in known}
    if stored.bits is not None and typed.lr is not None:
        changes["lr"] = power_of_two(typed.lr)
    if typed.rule is not None:
        changes["rule"] = rules.full_name(typed.rule)
    changes |= {key: own.full_name(str(changes[key])) for key in ("data", "views") if key in changes}
    if "rule_options" in flags:
        changes["rule_options"] = parse_options(typed.rule_options)
    if "view_strength" in flags:
        own_views = spec_for(typed.data or stored.data).augmentation
        changes["augmentation"] = own_views.scaled(typed.view_strength)
    config = dataclasses.replace(stored, **changes)
    name = own.full_name(typed.encoder or str(stored.encoder.get("name")))
    registry.check_name(name)
    images = Run(run.path, config).images(
        train_split(config.data), typed.data_root, typed.data, config.limit_images, **memory_of(typed)
    )
    encoder = stored.encoder
    if {"width", "encoder_options"} & flags.keys() or name != encoder.get("name"):
        asked = wished(get_rule(config.rule, config.rule_options), config.bits)
        options = parse_options(typed.encoder_options, "--encoder-options")
        with registry.sketched(name):
            encoder = encoders.build(name, images.shape, typed.width, options, asked).config or {}
    return dataclasses.replace(config, encoder=encoder), images


def _check_trained_here(run: Run) -> None:
    """Refuse to repeat or go on with what a study has trained in its own way."""
    if run.config.trained_by is not None:
        raise UsageError(
            f"{run.path} was trained by {run.config.trained_by}, in a way that train has no flags for; give that "
            f"command again, or train with flags of your own into another --out"
        )


def _alignable(typed: TrainConfig, resolved: RunConfig, report: Callable[[str], None]) -> RunConfig:
    """Without --align-every where the rule has nothing to be held against: refused if typed, left out if stored."""
    why = alignment.refusal(get_rule(resolved.rule, resolved.rule_options)) if resolved.align_every else None
    if why is None:
        return resolved
    if typed.align_every:
        raise UsageError(f"--align-every: {why}; leave it out, and `align --reference bp-clapp++` once it is trained")
    report(f"no alignment while training: {why}")
    return dataclasses.replace(resolved, align_every=0)


def _check_images(
    out: Path, asked: RunConfig, stored: RunConfig, images: Images, report: Callable[[str], None]
) -> None:
    """Refuse other images than those that the run was begun with, as far as that can be seen."""
    before = manifest_of(out, "data")
    if len(images) != before.get("images", len(images)):
        raise UsageError(
            f"{asked.data} has {len(images)} training images, {before['images']} when {out} was begun; "
            f"put the same images back, or choose another --out"
        )
    if "fingerprint" in before and images.fingerprint() != before["fingerprint"]:
        differ = f"the images of {asked.data} are not exactly those that {out} was begun with"
        if asked.data != stored.data:
            raise UsageError(f"{differ}, of {stored.data}; use those, or another --out")
        report(differ)


def _check_settings(out: Path, asked: RunConfig, stored: RunConfig) -> None:
    """Refuse to go on with other settings than those that made the checkpoint."""
    free = FREE if stored.schedule == "cosine" else (*FREE, "epochs")
    kinds = [data.partition(":")[:2] for data in (asked.data, stored.data)]
    if kinds[0] == kinds[1]:
        free = (*free, "data")  # a path may change, and be relative to where the user is: the images are compared
    if differences := asked.differences(stored, but=free):
        raise UsageError(
            f"{out} was trained with other settings: {'; '.join(differences)}; use those, or another --out"
        )
