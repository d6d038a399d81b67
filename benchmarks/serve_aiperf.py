"""NVIDIA's AIPerf against `sdrpn serve`, offline: four profiles, with and without kept prefixes, each run twice.

    python -m venv aiperf && aiperf/bin/pip install aiperf        # in an environment of its own
    python benchmarks/serve_aiperf.py --aiperf aiperf/bin/aiperf [BUNDLE] [--scale 1] [--threads N] [--json]

Profiles: one client, eight clients, eight clients without streams, and requests at a constant rate. The server is a
process of its own, started for each half; without a cache, a slot still holds its last picture, so there are more
pictures than slots. AIPerf counts tokens with the bundle's own tokenizer, from a folder, and asks no hub. Both runs of
a profile send the same requests in the same order, after some that are not counted.

Prints requests per second, time to the first token and latency of both runs, and how far the runs differ. The exit code
is 1 for a request that failed, and for runs that differ by more than --within.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.shipped import bundle_path
from sdrpn.host.machine import read_cpu
from sdrpn.tags import tag_samples

SEED = 20
# AIPerf's options, and how many requests are sent: each takes 10 to 20 s with the shipped model on two cores.
PROFILES = {
    "one client": (("--streaming", "--concurrency", "1"), 72),
    "eight clients": (("--streaming", "--concurrency", "8"), 96),
    "eight clients, no streams": (("--concurrency", "8"), 96),
    "constant rate": (("--streaming", "--request-rate", "2", "--arrival-pattern", "constant"), 30),
}
WARM_REQUESTS = 8
# What it does besides sending requests takes time from the server that it measures.
QUIET = ("--ui", "none", "--no-gpu-telemetry", "--no-server-metrics", "--workers-max", "1", "--record-processors", "1")
# Requests per second; milliseconds; tokens that were known.
FIGURES = ("request_throughput", "time_to_first_token", "request_latency", "usage_prompt_cache_read_tokens")


def write_inputs(folder: Path, bundle: str, pictures: int) -> None:
    """Questions about pictures, and a tokenizer as transformers reads it."""
    opened = open_bundle(bundle_path(bundle))
    assert opened.manifest.tokenizer is not None
    (folder / "tokenizer").mkdir()
    shutil.copy(opened.file(opened.manifest.tokenizer), folder / "tokenizer" / "tokenizer.json")
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    with (folder / "inputs.jsonl").open("w") as file:
        for number, sample in enumerate(tag_samples("heldout", pictures, SEED)):
            picture = folder / f"{number}.png"
            sample.image.save(picture)
            file.write(json.dumps({"text": sample.question, "image": str(picture)}) + "\n")


def started(options: argparse.Namespace, *more: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "sdrpn", "serve", options.bundle, "--port", "0", "--name", "sdrpn", *more]
    command += ["--threads", str(options.threads)] if options.threads else []
    server = subprocess.Popen([*command, "--log-format", "none"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"listening on (\S+)", line):
            return server, found[1]
    raise SystemExit("the server did not start")


def run_profile(options: argparse.Namespace, folder: Path, url: str, profile: str) -> dict[str, float]:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [options.aiperf, "profile", "--model", "sdrpn", "--url", url, "--endpoint-type", "chat"]
    command += ["--tokenizer", str(folder / "tokenizer"), "--input-file", str(folder / "inputs.jsonl")]
    sent, requests = PROFILES[profile]
    command += ["--custom-dataset-type", "single_turn", "--request-count", str(max(2, round(requests * options.scale)))]
    command += ["--warmup-request-count", str(WARM_REQUESTS), "--random-seed", str(SEED), *QUIET]
    command += ["--dataset-sampling-strategy", "sequential", "--artifact-dir", str(out), *sent]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    report = out / "profile_export_aiperf.json"
    if done.returncode or not report.exists():
        raise SystemExit(f"{profile}: aiperf ended with {done.returncode}:\n{done.stdout[-2000:]}")
    found: dict[str, Any] = json.loads(report.read_text())
    errors = found.get("error_request_count") or {"avg": 0}
    return {
        **{name: round(found[name]["avg"], 4) for name in FIGURES if found.get(name)},
        "errors": errors["avg"] or 0,
    }


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both runs of every profile, with and without a cache."""
    results: dict[str, Any] = {}
    for cache, more in (("cache", ()), ("no cache", ("--cache-bytes", "0"))):
        server, url = started(options, *more)
        try:
            run_profile(options, folder, url, options.profiles[0])  # every picture is known, where they are kept
            for profile in options.profiles:
                runs = [run_profile(options, folder, url, profile) for _ in range(2)]
                rates = [run["request_throughput"] for run in runs]
                found = {"runs": runs, "runs_differ_by": round(abs(rates[1] / rates[0] - 1), 4)}
                results[f"{profile}, {cache}"] = found
                print(row(f"{profile}, {cache}", found), file=sys.stderr, flush=True)
        finally:
            server.terminate()
            server.wait(60)
    return results


def row(name: str, found: dict[str, Any]) -> str:
    runs = found["runs"]
    rates = ", ".join(f"{run['request_throughput']:.2f}" for run in runs)
    first = ", ".join(f"{run['time_to_first_token']:.0f}" for run in runs if "time_to_first_token" in run) or "-"
    whole = ", ".join(f"{run['request_latency']:.0f}" for run in runs)
    known = ", ".join(f"{run.get('usage_prompt_cache_read_tokens', 0):.0f}" for run in runs)
    errors = sum(run["errors"] for run in runs)
    apart = f"runs differ by {100 * found['runs_differ_by']:.1f} %"
    return (
        f"{name:36} {rates} requests/s, first token {first} ms, whole {whole} ms, known tokens {known}, "
        f"{errors:.0f} errors; {apart}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="demo")
    parser.add_argument("--aiperf", required=True, help="the program of that name")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times as many requests")
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--within", type=float, default=5.0, help="most percent that two runs may differ by")
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=list(PROFILES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, options.bundle, options.pictures)
        results = measured(options, folder)
    agree = all(100 * found["runs_differ_by"] <= options.within for found in results.values())
    if options.json:
        machine = {"cpu": read_cpu().name, "cores": os.cpu_count()}
        print(json.dumps({"format_version": 1, **machine, "agree": agree, "results": results}, indent=1))
    else:
        print("\n".join(row(name, found) for name, found in results.items()))
        print(f"runs agree within {options.within:g} %: {'yes' if agree else 'no'}")
    return 1 if not agree or any(run["errors"] for found in results.values() for run in found["runs"]) else 0


if __name__ == "__main__":
    sys.exit(main())
