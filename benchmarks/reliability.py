"""Writes the table of promises in benchmarks/reliability.md; its numbers come from benchmarks/results.

python benchmarks/reliability.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localssl import markdown
from localssl.stats import t_interval

HERE = Path(__file__).parent
PAGE = HERE / "reliability.md"
BEGIN, END = "<!-- made by benchmarks/reliability.py -->", "<!-- end of what is made -->"
HEADER = ("promise", "how tested", "count", "result", "command")
SUITE = "holds in the suite"


def record(name: str) -> dict[str, Any] | None:
    """What a benchmark has left; None where it was not run."""
    file = HERE / "results" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def command(line: str, name: str) -> str:
    """A benchmark's command, and the commits that its record was made at."""
    found = record(name)
    if found is None:
        return f"`{line}`"
    commits = dict.fromkeys(part.get("commit", found["commit"]) for part in found.get("pieces", [found]))
    return f"`{line}`, at {', '.join(commits)}"


def kills() -> tuple[str, str]:
    """Count and result of ``kills.py``."""
    found = record("kills")
    if found is None:
        return "not measured yet", "not measured yet"
    moments = ", ".join(f"{count} {moment}" for moment, count in found["moments"].items())
    return f"{found['kills']} kills ({moments})", f"{found['finished']} finished runs, {found['different']} different"


def fuzz() -> tuple[str, str]:
    """Count and result of ``fuzz.py``."""
    found = record("fuzz")
    if found is None:
        return "not measured yet", "not measured yet"
    each = found["targets"].values()
    slowest, memory = max(t["slowest_seconds"] for t in each), max(t["memory_mib"] for t in each)
    refused = sum(t["refused"] for t in each)
    return (
        f"{found['inputs']:,} of 1,000,000 inputs, {len(each)} readers",
        f"{found['failed']} failures, {refused:,} refused; slowest input {slowest:.2f} s, {memory:.0f} MiB of "
        f"{found['memory_bound_mib']} allowed",
    )


def mutants() -> tuple[str, str]:
    """Count and result of ``oracle_mutants.py``."""
    found = record("oracle_mutants")
    if found is None:
        return "not measured yet", "not measured yet"
    noticed = sum(row["noticed by"] is not None for row in found["rows"])
    return f"{len({row['rule'] for row in found['rows']})} rules", f"{noticed} of {len(found['rows'])} were noticed"


def whole() -> tuple[str, str]:
    """Count and result of ``soak.py`` without kills."""
    found = record("soak-whole")
    if found is None:
        return "not measured yet", "not measured yet"
    (piece,) = found["pieces"]
    course = piece["course_mib"]
    (slope,) = piece["mib_per_1000_steps"]
    return (
        f"{piece['minutes']:.0f} minutes, {piece['course_steps']:,} steps",
        f"resident MiB, means of {len(course)} equal parts: {', '.join(f'{mib:.0f}' for mib in course)}; "
        f"{slope:+.2f} MiB per 1,000 steps after the first fifth",
    )


def soak() -> tuple[str, str]:
    """Count and result of ``soak.py``."""
    found = record("soak")
    if found is None:
        return "not measured yet", "not measured yet"
    pieces = found["pieces"]
    slopes = [slope for p in pieces for slope in p["mib_per_1000_steps"]]
    total = {key: sum(p[key] for p in pieces) for key in ("minutes", "kills", "steps", "rows", "rows_wrong")}
    grown = {key: max(p[f"{key}_growth"] for p in pieces) for key in ("descriptors", "threads")}
    slope = "no slope yet"
    if len(slopes) > 1:
        mean, low, high = t_interval(slopes)
        slope = (
            f"{mean:+.2f} ({low:+.2f} to {high:+.2f}) MiB per 1,000 steps, mean of {len(slopes)} processes that lived "
            f"long enough for a slope, each between {min(slopes):+.2f} and {max(slopes):+.2f}"
        )
    latest = pieces[-1]["mib_per_1000_steps"]
    if len(latest) > 1:
        slope += "; of the last piece's {} {:+.2f} ({:+.2f} to {:+.2f})".format(len(latest), *t_interval(latest))
    return (
        f"{total['minutes']:.0f} of 360 minutes, {total['kills']} kills, {total['steps']:,} steps",
        f"memory {slope}; descriptors {grown['descriptors']:+d}, threads {grown['threads']:+d}; "
        f"{total['rows']} rows of metrics.csv, {total['rows_wrong']} wrong",
    )


def guided() -> tuple[str, str]:
    """Count and result of ``fuzz_guided.py``."""
    found = record("fuzz_guided")
    if found is None:
        return "not measured yet", "not measured yet"
    entries = found["targets"].values()
    covered, before = (sum(entry[key] for entry in entries) for key in ("covered", "covered_by_good_files"))
    failures = sum(entry["failure"] is not None for entry in entries)
    return (
        f"{found['inputs']:,} inputs, {len(entries)} readers, {max(e['seconds'] for e in entries)} seconds each",
        f"{failures} failures; {covered:,} branches reached, {before:,} by the good files",
    )


def threads() -> tuple[str, str]:
    """Count and result of ``threads.py``."""
    found = record("threads")
    if found is None:
        return "not measured yet", "not measured yet"
    rows = found["rows"]
    again = sum(row["again_equal"] for row in rows)
    others = [row for row in rows if row["threads"] > 1]
    equal = sum(row["equal_to_one"] for row in others)
    most = max(row["weights"] for row in others)
    loss = max(row["loss"] for row in others)
    return (
        f"{len({row['rule'] for row in rows})} rules, 1, 2 and 4 threads, {found['epochs']} epochs",
        f"{again} of {len(rows)} equal when run again; {equal} of {len(others)} equal to one thread, else losses "
        f"differ by up to {loss:.0e}, weights by up to {most:.0e} (relative)",
    )


def large_data() -> tuple[str, str]:
    """Count and result of ``large_data.py``."""
    found = record("large_data")
    if found is None:
        return "not measured yet", "not measured yet"
    order = found["order"]
    came = "as ordered" if order["as_ordered"] and order["each_once"] else "**not as ordered**"
    rates = ", ".join(f"{row['ratio']:.2f} at {row['size']} pixels" for row in found["rows"])
    steps = f"{order['steps']:,} steps, stopped at {order['stopped_at']:,}"
    return (
        f"{found['images']:,} images, {found['mib']:,} MiB, {steps}",
        f"{came}; memory {order['growth_mib']:+.1f} MiB from the tenth step on; speed of that in memory: {rates}",
    )


def rows() -> Iterator[tuple[str, ...]]:
    """The table."""
    pytest = "`pytest tests/{}`".format
    yield ("killed anywhere, `--resume` finds a whole checkpoint; the run equals the undisturbed one bit for bit",
           "SIGKILL; of half of the runs first in their first tenth of a second; half of the other kills aimed at a "
           "checkpoint being written", *kills(),
           command("python benchmarks/kills.py --kills 100 --out benchmarks/results/kills.json", "kills"))  # fmt: skip
    yield ("a write that fails leaves one line, a whole checkpoint and a way on",
           "each of ENOSPC, EROFS, EACCES, EDQUOT, EIO at every write of a run, in turn; a real tmpfs that is full; "
           "ENOSPC and EIO in the one of two processes that writes, which ends both",
           "every write; of one file's pieces the first and last", SUITE, pytest("test_disk.py"))  # fmt: skip
    yield ("a folder that vanishes under its run ends it in one line; nothing is written into what is in its place, "
           "and the run goes on when the folder is back",
           "renamed, replaced, those above it renamed; a real tmpfs unmounted, `umount -l`, which is the folder or "
           "holds it; before a row of metrics and before a checkpoint, in the middle of a file",
           "16 cases", SUITE, pytest("test_vanished.py"))  # fmt: skip
    yield ("a checkpoint that has changed on the disk is noticed, and the one before taken; an encoder too",
           "20 bytes of a weight or of the random numbers' state flipped", "3 files", SUITE,
           pytest("test_damage.py"))  # fmt: skip
    yield ("NaN and explosion: found in the step, block and images named, batch left out, state before it kept "
           "(below: where that is the last checkpoint)",
           "an infinite activity in a chosen block and step; rates at which weights explode",
           "`--on-nan` stop, skip, rollback; 4 rules", SUITE, pytest("test_divergence.py"))  # fmt: skip
    yield ("two runs into one folder: the second is refused and has read and changed nothing, the owner named; a stale "
           "lock is recognised",
           "a second run begun at five moments of the first, anew and with `--resume`; file systems without locks; "
           "dead owners", "five moments, two ways; locks", SUITE,
           pytest("test_two_runs.py tests/test_files.py"))  # fmt: skip
    yield ("no file makes a reader crash, hang or take memory without bound",
           "mutated good files and noise, in processes of their own; hypothesis in the suite", *fuzz(),
           command("python benchmarks/fuzz.py --inputs 1000000 --minutes 600", "fuzz"))  # fmt: skip
    yield ("the same, steered to code that no input has reached yet", "atheris, from the same good files", *guided(),
           command("python benchmarks/fuzz_guided.py --seconds 30 --out benchmarks/results/fuzz_guided.json",
                   "fuzz_guided"))  # fmt: skip
    yield ("decompression bombs are refused", "images, npz archives, parquet, YAML aliases", "13 cases", SUITE,
           pytest("test_fuzz.py"))  # fmt: skip
    yield ("nothing in a file is executed",
           "the source searched; malicious checkpoint, weights, configuration, npz, code; paths that lead elsewhere",
           "every module; 10 files", SUITE, pytest("test_no_code_from_files.py tests/test_shards.py"))  # fmt: skip
    yield ("nothing grows or gets lost over hours", "training in pieces, killed and resumed at random", *soak(),
           command("make soak", "soak"))  # fmt: skip
    yield ("memory levels off", "one process that nobody kills", *whole(),
           command("python benchmarks/soak.py --minutes 61 --piece 61 --kill-every 600 --out "
                   "benchmarks/results/soak-whole.json", "soak-whole"))  # fmt: skip
    yield ("every rule's losses and updates are compared with a derivation of its own",
           "the derivation's losses, then its gradients, times 1.01: a test that fails is looked for", *mutants(),
           command("python benchmarks/oracle_mutants.py --out benchmarks/results/oracle_mutants.json",
                   "oracle_mutants"))  # fmt: skip
    yield ("a set larger than memory comes in the order of its seed, each image once, resumed in mid-epoch, in bounded "
           "memory", "an epoch from tar shards on disk, stopped and resumed; images a second from disk and in memory",
           *large_data(),
           command("python benchmarks/large_data.py --folder /tmp --out benchmarks/results/large_data.json",
                   "large_data"))  # fmt: skip
    yield ("same seed, same bits on the CPU, with the same number of threads", "runs repeated and compared", *threads(),
           command("python benchmarks/threads.py --epochs 1 --out benchmarks/results/threads.json",
                   "threads"))  # fmt: skip
    yield ("a process or machine that dies ends the run on all others in seconds, one that is cut off after "
           "`--patience`", "SIGKILL of one of two processes, and of one of two hosts in network namespaces; their "
           "cable down", "1 case each", SUITE, pytest("test_launch.py tests/test_hosts.py"))  # fmt: skip
    yield ("under torchrun a killed process is begun again and all go on; a run goes on with another number of "
           "processes", "the weights of an undisturbed run; 2 processes to 1, 4 to 2, with and without `--shard-b`",
           "1 case each", SUITE,
           pytest("test_torchrun.py tests/test_launch.py tests/test_sharding.py"))  # fmt: skip
    yield ("N processes or machines train what one process trains",
           "losses, gradients, weights of a learner in float64; whole runs of the command, with their views; two hosts "
           "against as many processes on one, bit for bit", "seventeen rules and variants; 7 runs; 4 ways", SUITE,
           pytest("test_parallel.py tests/test_shared_views.py tests/test_hosts.py"))  # fmt: skip
    yield ("a run can be repeated from its folder, and what differs is named", "`train --config … --expect …`",
           "settings, versions, data, machine, numbers", SUITE, pytest("test_repeat.py"))  # fmt: skip
    yield ("files of format 1 are read for ever",
           "run folders of the first commit that trained and of a later one, a rule as data: opened, probed, aligned, "
           "reported, exported, gone on with to the same weights within 0.001", "2 runs, 1 rule.json", SUITE,
           pytest("test_format_1.py"))  # fmt: skip
    yield ("the wheel is whole, and works where the repository is not",
           "wheel and sdist built, `twine check --strict`, every file of the package looked for; installed into an "
           "environment of its own, doctor, train, probe, report, and by `make dist` the demo", "5 commands",
           f"{SUITE} where `.[dist]` is installed", f"{pytest('test_wheel.py')}, `make dist`")  # fmt: skip


def updated(text: str) -> str:
    """The page with its table made anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{markdown.table(HEADER, rows())}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
