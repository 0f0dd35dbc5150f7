"""What each command does: calls the library and shows the result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from localssl import certificate, checkup, encoders, evaluate, export, nir_graph, own, rulefile, rules
from localssl.certificate import Certificate, listing
from localssl.cli import flags, pages
from localssl.cli.given import at_least, set_threads
from localssl.errors import RunError, UsageError, in_shell, unknown
from localssl.experiments import EXPERIMENTS, KEPT_SCALE, PAPER_SCALE, Settings, comparison, precision, summary
from localssl.experiments.rows import Study, named, options_of_encoder
from localssl.learner import Learner
from localssl.probe import ProbeResult, features
from localssl.report.comparison import Line
from localssl.report.tables import show
from localssl.rules import Rule
from localssl.runs import flagfile, repeat
from localssl.runs.config import as_typed, parse_options, program
from localssl.runs.run import Run, manifest_of, open_run
from localssl.system.slow import Slow
from localssl.theory.checks import Outcome, verify_all
from localssl.training import launch, rehearsal
from localssl.training.train import train


def run(command: object) -> None:
    """Carry out a parsed command."""
    own.check_files(getattr(command, "own", ()))
    work: dict[type, Callable[[Any], object]] = {
        flags.Train: _train,
        flags.Probe: probe,
        flags.Align: align,
        flags.Compare: compare,
        flags.Certify: certify,
        flags.Theory: theory,
        flags.Report: pages.report,
        flags.Export: export_run,
        flags.Reproduce: reproduce,
        flags.Doctor: doctor,
    }
    work[type(command)](command)


def _train(command: flags.Train) -> None:
    if command.dry_run:
        for line in rehearsal.lines(rehearsal.rehearse(command)):
            print(line)
        return
    finished = train(repeated(command))
    path, localssl = in_shell([str(finished.path)]), program()
    if not launch.speaks(command.nodes):
        return
    named = f" --own {in_shell(files)}" if (files := command.own_files()) else ""
    if not finished.config.epochs:
        print("no epoch was run: the encoder is as its seed drew it")
    reference = evaluate.first_reference(finished)
    against = "" if reference == "own" else f" --reference {reference}"
    further = [f"{localssl} {each} {path}{named}" for each in ("probe", "align", "report")]
    further[1] += against
    print(f"done: {path}; next: {', '.join(further)}")
    if command.report or not command.no_report:
        pages.write(finished.path, command)
    if command.expect is not None:
        expect(finished.path, command.expect)


def repeated(command: flags.Train) -> flags.Train:
    """The command with what it leaves to the run that it should repeat, if there is one."""
    expected = command.expect
    if expected is None:
        return command
    open_run(expected)  # first: it may be misspelt
    config, out, threads = command.config, command.out, command.threads
    if config is None and command.rule is None and not command.resume:
        config = expected / "config.yaml"
    if out is None:
        out = expected.with_name(f"{expected.name}-again")
    if threads is None:  # with another number of them the last digits may differ
        threads = manifest_of(expected, "environment").get("threads")
    return dataclasses.replace(command, config=config, out=out, threads=threads)


def expect(run: Path, expected: Path, report: Callable[[str], None] = print) -> repeat.Comparison:
    """Compare a run with the one that it should repeat and say what differs.

    Raises:
        RunError: numbers that are not the same.
    """
    found = repeat.compare(run, expected)
    for line in repeat.told(found, expected):
        report(line)
    if found.numbers:
        raise RunError(f"{run} does not repeat {expected}: {len(found.numbers)} differences in numbers")
    return found


def probe(command: flags.Probe) -> dict[str, ProbeResult]:
    """Probe a run, show the table and keep it as CSV in the run's folder."""
    opened = open_run(command.run)
    paper = command.protocol == "paper"
    if paper and command.labels != ("all",):
        raise UsageError("--protocol paper takes all labels; --labels goes with --protocol fast")
    if not paper and command.epochs is not None:
        raise UsageError("--epochs goes with --protocol paper; the fast protocol fits to the end")
    set_threads(command.threads)
    options = evaluate.ProbeOptions(
        command.protocol,
        command.labels,
        command.draws,
        evaluate.PAPER_EPOCHS if command.epochs is None else command.epochs,
        command.limit_images,
        command.device,
        command.skip_bad,
    )
    results = evaluate.probe_run(opened, options, command.data, command.data_root)
    protocol = results[opened.config.rule].protocol
    rows = evaluate.probe_rows(results)
    header, shown = evaluate.beside_untrained(dict(zip(evaluate.PROBE_HEADER, row, strict=True)) for row in rows)
    rule = own.short_name(opened.config.rule)
    show(f"{command.run}: accuracy in % under {rule}, and of the same encoder untrained", header, shown, protocol)
    path = command.run / f"probe-{command.protocol}{_suffix(command.data)}.csv"
    evaluate.to_csv(path, evaluate.PROBE_HEADER, *evaluate.with_earlier(path, rows, protocol))
    print(f"written: {path}")
    return results


def align(command: flags.Align) -> evaluate.AlignResult:
    """Measure alignment, show the table and keep it as CSV in the run's folder."""
    opened = open_run(command.run)
    set_threads(command.threads)
    options = evaluate.AlignOptions(
        command.batches, command.batch_size, command.reference, command.fit_batches, command.skip_bad
    )
    result = evaluate.align_run(opened, options, command.data, command.data_root)
    rows = evaluate.align_rows(result)
    title = f"{command.run}, step {result.step}: {result.rule} against {result.reference}"
    shown = [[*row[2:5], evaluate.interval(row[5], row[6]), *row[7:9]] for row in rows if row[9] == "weights"]
    show(title, [*evaluate.ALIGN_HEADER[2:5], "95 % interval", "batches", "null"], shown, result.protocol)
    against = "" if command.reference == "own" else f"-{command.reference}"
    path = command.run / f"align{against}{_suffix(command.data)}.csv"
    evaluate.to_csv(path, evaluate.ALIGN_HEADER, rows, result.protocol)
    print(f"written: {path} (there also for every parameter)")
    return result


def compare(command: flags.Compare) -> list[Line]:
    """Train and measure the rules that are not there yet; show and write the table."""
    c = command
    at_least(1, seeds=c.seeds, jobs=c.jobs, probe_images=c.probe_images)
    at_least(0, align_batches=c.align_batches)
    if c.rules is not None and not c.rules:
        raise UsageError("--rules stands without a value: give names of rules, or all")
    if any(not 0 < lr < math.inf for lr in c.search_lr) or c.search_epochs < 1:
        raise UsageError("--search-lr takes positive numbers, --search-epochs 1 or more")
    set_threads(c.threads)
    study = Study(
        data=c.data,
        epochs=c.epochs,
        width=c.width,
        limit_images=c.limit_images,
        batch_size=c.batch_size,
        patches=c.patches,
        precision=c.precision,
        image_size=c.image_size,
        skip_bad=c.skip_bad,
        labels=c.labels,
        probe_images=c.probe_images,
        align_batches=c.align_batches,
        search_lr=tuple(dict.fromkeys(c.search_lr)),
        search_epochs=c.search_epochs,
        encoder=c.encoder,
        encoder_options=options_of_encoder(c.encoder_options),
        views=None if c.views is None else own.full_name(c.views),
    )
    settings = Settings(c.out, c.data_root, c.seeds, c.jobs, c.threads)
    rows, bits = named(c.rules or (), c.data), precision.bits_of(c.bits)
    flaws = {name: getattr(c, name) for name in precision.FLAWS}
    if not bits and any(flaws.values()):
        raise UsageError("--weight-noise, --dead and --mismatch go with --bits; give --bits, too")
    rows = precision.rows(rows, bits, flaws) if bits else rows
    # the flags first: one that is stopped goes on with --config, too
    compared = comparison.compare(study, rows, settings, c.seeds, lambda: flagfile.write(c.out / flagfile.NAME, c))
    lines = summary.write(compared, study, settings)
    if bits:
        print(f"written: {', '.join(map(str, precision.write(compared, study, settings)))}")
    if c.report:
        from localssl.experiments import side_by_side  # here: what draws charts takes a second to import

        print(f"written: {side_by_side.write(compared, lines, study, settings, as_typed('compare', c))}")
    summary.check(lines, c.out)
    return lines


def certify(command: flags.Certify) -> list[Certificate]:
    """Certify rules, show the table and keep the details as CSV."""
    names = list(dict.fromkeys(name for group in command.rule for name in group))
    if command.rule_options and len(names) != 1:
        raise UsageError("--rule-options goes with one --rule")
    if command.encoder is None and (command.width is not None or command.image_size is not None):
        raise UsageError("--width and --image-size go with --encoder")
    if command.out is not None:
        _check_folder(command.out)
    options = parse_options(command.rule_options)
    chosen = [rules.get(name, **options) for name in names or listing.built_in()]  # first: one may be misspelt
    slow = Slow("{done} of {total} rules certified")
    found: list[Certificate] = []
    for rule in chosen:
        found.append(certificate.certify(_subject(rule, command)))
        slow(len(found), len(chosen))
    show("What one update reads", listing.SHORT, [listing.short(c) for c in found], listing.CAPTION, left=5)
    if command.out is not None:
        evaluate.to_csv(command.out, listing.LONG, [row for c in found for row in listing.long(c)], listing.CAPTION)
        print(f"written: {command.out} (every parameter, what it read and what that rests on)")
    return found


def _subject(rule: Rule, command: flags.Certify) -> Rule | Learner:
    """What is certified: the rule on a small network, or on the encoder that was named."""
    if command.encoder is None:
        return rule
    size = 32 if command.image_size is None else command.image_size
    at_least(1, image_size=size)
    shape, width = (3, size, size), command.width
    if width is None:  # networks of others, and one's own, have widths of their own
        width = 0.0625 if command.encoder in encoders.names() else 1.0
    encoder = encoders.build(command.encoder, rule.inputs().shape(shape), width, rule.encoder_options)
    return Learner(encoder, rule, shape)


def theory(command: flags.Theory) -> list[Outcome]:
    """Check every statement and show what was found."""
    torch.set_num_threads(1)  # the matrices are small: threads would wait for each other
    if command.full and command.cases is not None:
        raise UsageError("--full is 1,000 cases of each; leave out --full or --cases")
    outcomes = verify_all(1000 if command.full else 60 if command.cases is None else command.cases)
    rows: list[list[object]] = []
    for o in outcomes:
        limit = o.statement.allowed(o.where) if o.statement.at_least is None else o.statement.at_least
        sign = "≤" if o.statement.at_least is None else "≥"
        verdict = "pass" if o.passed else "FAIL"
        rows.append(
            [o.kind, o.statement.name, o.statement.text, o.cases, f"{o.worst:.1e}", f"{sign} {limit:g}", verdict]
        )
    header = ["", "statement", "claim", "cases", "largest", "limit", ""]
    caption = (
        "largest: relative deviation found, negative where an inequality holds with room to spare; the limit is that "
        "of the case it was found on (hinge: 1e-8); float64; docs/theory.md says more."
    )
    show("The theory on random networks and batches", header, rows, caption, left=3)
    failed = [o for o in outcomes if not o.passed]
    for o in failed:
        print(f"failed: {o.statement.name}, worst on {o.where}")
    if failed:
        raise RunError(f"{len(failed)} of {len(outcomes)} statements failed")
    print(f"all {len(outcomes)} statements hold")
    return outcomes


def export_run(command: flags.Export) -> Path:
    """Write ONNX, a NIR graph, the rule as data, or embeddings."""
    if [command.onnx, command.nir is not None, command.rule, command.embeddings].count(True) != 1:
        raise UsageError("export needs one of --onnx, --nir, --rule and --embeddings")
    if command.nir_activation is not None and command.nir is None:
        raise UsageError("--nir-activation goes with --nir PATH")
    opened = open_run(command.run)
    if command.rule:
        return _export_rule(opened, command.out or command.run / "rule.json")
    encoder = opened.encoder()
    c = opened.config
    shape = c.input_shape
    if command.nir is not None:
        _check_folder(command.nir)
        graph = nir_graph.to_nir(encoder, shape, command.nir, command.nir_activation)
        said = f"written: {command.nir}, {graph.nodes} nodes"
        if graph.scales:
            said += f"; activity of one spike a step, by ReLU: {', '.join(f'{scale:.3g}' for scale in graph.scales)}"
            said += f"; of 1 a step of the output: {graph.output:.3g}"
        print(said)
        return command.nir
    if command.onnx:
        path = command.out or command.run / "encoder.onnx"
        _check_folder(path)
        worst = export.to_onnx(encoder, shape, path)
        print(f"written: {path}; onnxruntime differs from PyTorch by at most {worst:.1e}")
        return path
    if command.out is None:
        raise UsageError("export --embeddings needs --out, for instance --out z.npy")
    _check_folder(command.out)
    images = opened.images(command.split, command.data_root, command.data, skip_bad=command.skip_bad)
    slow = Slow(f"features of {{done}} of {{total}} {command.split} images")
    parts = features(encoder, images, patches=c.patches, normalise=opened.normalise(), report=slow)
    rows, columns = export.save_embeddings(parts, command.out)
    sizes = [part.shape[1] for part in parts]
    for fact in images.facts:
        print(fact)
    print(f"written: {command.out}, float32 ({rows}, {columns}); columns of blocks 1 to {len(sizes)}: {sizes}")
    return command.out


def _export_rule(opened: Run, path: Path) -> Path:
    """Write a run's learning rule as data."""
    _check_folder(path)
    found = rulefile.write(opened, path)
    print(
        f"written: {path} ({found.size / 1e6:.1f} MB); {found.operations} operations a step, golden vectors of "
        f"{found.steps} steps in {' and '.join(found.arithmetics)}"
    )
    if flaws := [name for name in ("weight_noise", "dead", "mismatch") if getattr(opened.config, name)]:
        print(f"of flawless synapses: --{', --'.join(flaws).replace('_', '-')} of the run are not in it")
    return path


def reproduce(command: flags.Reproduce) -> None:
    """Run experiments by name."""
    at_least(1, seeds=command.seeds, jobs=command.jobs, threads=command.threads)
    if not command.names:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:18s} {(experiment.__doc__ or '').splitlines()[0]}")
        return
    for name in command.names:
        if name not in EXPERIMENTS:
            raise unknown("experiment", name, EXPERIMENTS)
    for scale, having in (("paper", PAPER_SCALE), ("kept", KEPT_SCALE)):
        if command.scale == scale and not set(command.names) <= having:
            raise UsageError(f"--scale {scale} goes with {', '.join(sorted(having))}; the others have no such scale")
    c = command
    for name in c.names:
        EXPERIMENTS[name](Settings(c.out / name, c.data_root, c.seeds, c.jobs, c.threads, c.scale))


def doctor(command: flags.Doctor) -> list[checkup.Finding]:
    """Look at this machine, line by line, and say what to do."""
    if command.data_root is not None and not command.data_root.is_dir():
        raise UsageError(f"--data-root {command.data_root} is no folder")
    findings: list[checkup.Finding] = []
    for finding in checkup.look(command.data_root, speed=not command.quick):
        if not findings or findings[-1].about != finding.about:
            print(f"{finding.about}:")
        mark = "!" if finding.broken else " "
        print(f" {mark} {finding.name}: {finding.found}", flush=True)
        findings.append(finding)
    advice = [finding for finding in findings if finding.advice]
    if advice:
        print("what to do:")
    for finding in advice:
        print(f"   {finding.name}: {finding.advice}")
    if broken := [finding.name for finding in findings if finding.broken]:
        raise RunError(f"localssl cannot work as it is: {', '.join(broken)}")
    print("localssl can work here")
    return findings


def _suffix(data: str | None) -> str:
    if data is None:
        return ""
    return "-" + "".join(c if c.isalnum() or c in "-." else "_" for c in data)


def _check_folder(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}; make it first")
