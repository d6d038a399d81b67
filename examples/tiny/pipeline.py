"""The whole way to the shipped model: base training, heads, labels, RPN, gate, bundle, evaluation.

    python examples/tiny/pipeline.py --out runs               # about six hours on two cores
    python examples/tiny/pipeline.py --out runs --reduced     # about two minutes, from the shipped checkpoint on

Every step prints its command and is left out where its result is there already, so a run that was broken off goes on.
Labels, RPN and gate see questions and pictures only, and what the model itself answered: neither boxes nor true
answers.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
SHIPPED = HERE / "checkpoint"


@dataclass(frozen=True)
class Sizes:
    """How much of each stage to run.

    reading: whether the tower and the first language stages are trained; else the last stage starts from the shipped
    checkpoint. finding: arguments of `train_finding.py`.
    """

    reading: bool
    finding: tuple[str, ...]
    head_questions: int
    pairs: int
    gate_pairs: int
    seeds: tuple[int, ...]
    samples: int
    train: tuple[str, ...] = field(default=())
    train_gate: tuple[str, ...] = field(default=())


FULL = Sizes(
    reading=True,
    finding=(),
    head_questions=600,
    pairs=10_000,
    gate_pairs=7_680,
    seeds=(0, 1, 2),
    samples=2000,
)
REDUCED = Sizes(
    reading=False,
    finding=("--steps", "5", "--scenes", "8"),
    head_questions=24,
    pairs=80,
    gate_pairs=32,
    seeds=(0,),
    samples=3,
    train=("--steps", "40", "--batch", "16", "--validation-share", "0.2"),
    train_gate=("--steps", "4", "--batch", "8", "--validation-share", "0.3"),
)


@dataclass(frozen=True)
class Step:
    """One command, and what is there when it is done (None: it knows itself how far it is)."""

    command: tuple[str, ...]
    makes: Path | None


def script(name: str, *arguments: str | Path | int) -> tuple[str, ...]:
    """A script beside this one."""
    return (sys.executable, str(HERE / name), *map(str, arguments))


def verb(name: str, *arguments: str | Path | int) -> tuple[str, ...]:
    """`sdrpn NAME ...`."""
    return (sys.executable, "-m", "sdrpn.cli.main", name, *map(str, arguments))


def steps(out: Path, sizes: Sizes) -> Iterator[Step]:
    """In the order in which they run."""
    yield from base_training(out, sizes)
    checkpoint = out / "checkpoint"
    yield Step(script("save_checkpoint.py", out / "F", checkpoint), checkpoint)
    yield from labels(out, sizes, checkpoint)
    for seed in sizes.seeds:
        rpn = out / f"rpn-{seed}"
        files = ("--labels", out / "labels", "--taps-dir", out / "taps", "--out", rpn)
        yield Step(verb("train", checkpoint, *files, "--preset", "tiny", "--seed", seed, *sizes.train), rpn)
    yield from gates(out, sizes, checkpoint)
    yield from results(out, sizes, checkpoint)


def base_training(out: Path, sizes: Sizes) -> Iterator[Step]:
    """The model before it knows anything of regions. Stages go on by themselves from where they were."""
    start = SHIPPED
    if sizes.reading:
        for before, name in (("", "V1"), ("V1", "V2"), ("V2", "V3")):
            start_from = ("--start", out / before) if before else ()
            reading = script("train_vision.py", "--stage", name, "--out", out / name, *start_from)
            yield Step(with_resume(reading, out / name), None)
        for before, name in (("V3", "L0"), ("L0", "C")):
            stage = script("train_language.py", "--stage", name, "--start", out / before, "--out", out / name)
            yield Step(with_resume(stage, out / name), None)
        start = out / "C"
    finding = script("train_finding.py", "--start", start, "--out", out / "F", *sizes.finding)
    yield Step(with_resume(finding, out / "F"), None)


def with_resume(command: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """Only where there is something to go on with."""
    return (*command, "--resume") if (folder / "state.pt").exists() else command


def labels(out: Path, sizes: Sizes, checkpoint: Path) -> Iterator[Step]:
    """Pictures and questions, the heads that point, and what they pointed at."""
    some, pairs, heads = out / "head-pairs", out / "pairs", out / "heads"
    yield Step(script("make_pairs.py", some, "--pairs", sizes.head_questions, "--seed", 2, "--per-scene", 2), some)
    yield Step(script("make_pairs.py", pairs, "--pairs", sizes.pairs, "--seed", 1), pairs)
    asked = ("--data", some / "questions.jsonl", "--images", some / "images", "--max-new-tokens", 8)
    yield Step(verb("heads", checkpoint, *asked, "--out", heads), heads)
    asked = ("--data", pairs / "questions.jsonl", "--images", pairs / "images", "--max-new-tokens", 8)
    chosen = ("--heads", heads / "heads.json")
    yield Step(verb("label", checkpoint, *asked, *chosen, "--out", out / "labels", "--resume"), None)


def gates(out: Path, sizes: Sizes, checkpoint: Path) -> Iterator[Step]:
    """Scenes of mixed difficulty, which of them another look helps, and the gate for the RPN of the first seed."""
    pairs, rpn = out / "gate-pairs", ("--rpn", out / f"rpn-{sizes.seeds[0]}")
    mixed = ("--pairs", sizes.gate_pairs, "--seed", 3, "--split", "mixed-train")
    yield Step(script("make_pairs.py", pairs, *mixed), pairs)
    asked = ("--data", pairs / "questions.jsonl", "--images", pairs / "images", "--max-new-tokens", 8)
    labels = out / "gate-labels"
    label = verb("gate-label", checkpoint, *rpn, *asked, "--agree-with", "highest", "--out", labels, "--resume")
    yield Step(label, labels / "gate.json")
    files = ("--gate", *rpn, "--labels", labels, "--out", out / "gate")
    yield Step(verb("train", checkpoint, *files, "--preset", "tiny", *sizes.train_gate), out / "gate")


def results(out: Path, sizes: Sizes, checkpoint: Path) -> Iterator[Step]:
    """The bundle of the first seed, and every method's answers on both splits."""
    bundle, first = out / "bundle", out / "gate"
    yield Step(verb("export", checkpoint, "--rpn", first, "--precision", "fp16", "--out", bundle), bundle)
    rpns = [word for seed in sizes.seeds for word in ("--rpn", str(out / f"rpn-{seed}" / "rpn.safetensors"))]
    for split in ("heldout", "shifted"):
        folder = out / f"eval-{split}"
        asked = ("--task", "tags", "--split", split, "--samples", sizes.samples, "--methods", "all", "--threads", 1)
        labels = ("--heads", out / "heads" / "heads.json", "--threshold", "auto")
        yield Step(verb("eval", checkpoint, *asked, *rpns, *labels, "--out", folder, "--resume"), folder / "results.md")


def run_in_a_process(command: tuple[str, ...]) -> int:
    """The exit code of a command."""
    return subprocess.run(command, check=False).returncode


def run_steps(wanted: Iterable[Step], run: Callable[[tuple[str, ...]], int] = run_in_a_process) -> int:
    """Those whose results are not there yet; the code of the first that fails, or 0."""
    for step in wanted:
        if step.makes is not None and step.makes.exists():
            continue
        print(f"$ {shlex.join(step.command)}", flush=True)
        code = run(step.command)
        if code:
            return code
    return 0


def main() -> int:
    """Run what is still to be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything made")
    parser.add_argument("--reduced", action="store_true", help="a little of everything, from the shipped checkpoint on")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    return run_steps(steps(out, REDUCED if args.reduced else FULL))


if __name__ == "__main__":
    sys.exit(main())
