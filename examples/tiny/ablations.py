"""What the labels are worth: raw against denoised ones, and 300 to 10,000 pairs, each with the same number of steps.

python examples/tiny/ablations.py RUNS       # after pipeline.py --out RUNS

Writes RUNS/ablations/results.json and .md (by `sdrpn eval`, all on the same questions) and pairs.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pipeline import Step, run_steps, verb

from sdrpn.evaluation.bootstrap import interval, resampled_means
from sdrpn.host.atomic import replacing_file

PAIRS = 300, 1000, 3000, 10_000  # nested: the first of each other
SEEDS = 0, 1  # of raw against denoised labels; fewer pairs are tried with the first
SAMPLES = 1000


def steps(runs: Path, samples: int, training_steps: int) -> list[Step]:
    """Trainings, and one evaluation of all of them."""
    out, checkpoint, labels, raw = runs / "ablations", runs / "checkpoint", runs / "labels", runs / "labels-raw"
    found = [Step(verb("relabel", labels, "--raw", "--out", raw), raw)]
    rpns = ["--rpn", str(runs / "rpn-0" / "rpn.safetensors")]
    trainings = [(name_of(count, SEEDS[0]), labels, count, SEEDS[0]) for count in PAIRS[:-1]]
    for seed in SEEDS:
        trainings += [(name_of(PAIRS[-1], seed), labels, PAIRS[-1], seed), (f"raw-{seed}", raw, PAIRS[-1], seed)]
    common = ("--preset", "tiny", "--steps", training_steps, "--validations", 1)
    for name, source, pairs, seed in trainings:
        files = ("--labels", source, "--taps-dir", runs / "taps", "--out", out / name)
        more = ("--seed", seed, "--limit-pairs", pairs)
        found.append(Step(verb("train", checkpoint, *files, *common, *more), out / name))
        rpns += ["--rpn", f"{name}={out / name / 'rpn.safetensors'}"]
    asked = ("--task", "tags", "--samples", samples, "--seed", 5, "--methods", "plain,sdrpn")
    chosen = ("--heads", runs / "heads" / "heads.json", "--threshold", "auto")
    found.append(Step(verb("eval", checkpoint, *asked, *chosen, *rpns, "--out", out / "eval", "--resume"), None))
    return found


def name_of(pairs: int, seed: int) -> str:
    """The name of a training on denoised labels."""
    return f"n{pairs}-{seed}"


def total_steps(runs: Path) -> int:
    """As many as the shipped RPN took."""
    return int(json.loads((runs / "rpn-0" / "training.json").read_text("utf-8"))["steps"])


def draw(results: Path, picture: Path) -> None:
    """Accuracy over pairs, a point a seed and a line through their means; raw labels beside it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    methods = json.loads(results.read_text("utf-8"))["methods"]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    curve = [methods[f"sdrpn:{name_of(count, SEEDS[0])}"]["accuracy"] for count in PAIRS]
    axes.plot(PAIRS, curve, "o-", color="tab:blue", label="denoised")
    others = [methods[f"sdrpn:{name_of(PAIRS[-1], seed)}"]["accuracy"] for seed in SEEDS[1:]]
    axes.plot([PAIRS[-1]] * len(others), others, "o", color="tab:blue", alpha=0.5)
    raw = [methods[f"sdrpn:raw-{seed}"]["accuracy"] for seed in SEEDS]
    axes.plot([PAIRS[-1]] * len(raw), raw, "x", color="tab:orange", label="raw attention")
    axes.axhline(methods["plain"]["accuracy"], color="gray", linestyle=":", label="one look")
    axes.set(xscale="log", ylim=(0, 1), xlabel="question-answer pairs", ylabel="exact answers")
    axes.legend()
    with replacing_file(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def denoising_gain(records: Path) -> tuple[float, float, float]:
    """Mean over the seeds of denoised less raw, question by question, with its 95 % interval."""
    scores: dict[str, dict[int, float]] = {}
    for line in records.read_text("utf-8").splitlines():
        record = json.loads(line)
        scores.setdefault(record["method"], {})[record["index"]] = record["score"]
    questions = sorted(scores["plain"])

    def mean_scores(names: list[str]) -> NDArray[np.float64]:
        of_each = np.array([[scores[f"sdrpn:{name}"][index] for index in questions] for name in names])
        means: NDArray[np.float64] = of_each.mean(axis=0)
        return means

    denoised = mean_scores([name_of(PAIRS[-1], seed) for seed in SEEDS])
    gains = (denoised - mean_scores([f"raw-{seed}" for seed in SEEDS]))[:, None]
    low, high = interval(resampled_means(gains)[:, 0])
    return float(gains.mean()), low, high


def main() -> int:
    """Run what is still to be done, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of pipeline.py")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--steps", type=int, help="steps of every training (default: as for the shipped RPN)")
    args = parser.parse_args()
    runs = args.runs.resolve()
    (runs / "ablations").mkdir(exist_ok=True)
    code = run_steps(steps(runs, args.samples, args.steps or total_steps(runs)))
    if code == 0:
        measured = runs / "ablations" / "eval"
        draw(measured / "results.json", runs / "ablations" / "pairs.png")
        gain, low, high = denoising_gain(measured / "records.jsonl")
        print(f"denoised labels less raw ones: {100 * gain:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})")
    return code


if __name__ == "__main__":
    sys.exit(main())
