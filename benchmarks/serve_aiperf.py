"""NVIDIA's AIPerf against `sdrpn serve`, offline: four profiles, with and without kept prefixes, each run twice.

    python -m venv aiperf && aiperf/bin/pip install aiperf        # in an environment of its own
    python benchmarks/serve_aiperf.py --aiperf aiperf/bin/aiperf [BUNDLE] [--requests 60] [--pictures 12] [--threads N]

Profiles: one client, eight clients, eight clients without streams, and requests at a constant rate. The server is a
process of its own, started for each half; without a cache, a slot still holds its last picture, so there are more
pictures than slots. AIPerf counts tokens with the bundle's own tokenizer, from a folder, and asks no hub.
Prints JSON: requests per second, time to the first token and latency of both runs, and how far the runs differ.
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
PROFILES = {
    "one client": ("--streaming", "--concurrency", "1"),
    "eight clients": ("--streaming", "--concurrency", "8"),
    "eight clients, no streams": ("--concurrency", "8"),
    "constant rate": ("--streaming", "--request-rate", "2", "--arrival-pattern", "constant"),
}
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
    command += ["--custom-dataset-type", "single_turn", "--request-count", str(options.requests)]
    command += ["--artifact-dir", str(out), "--ui", "simple", *PROFILES[profile]]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="demo")
    parser.add_argument("--aiperf", required=True, help="the program of that name")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=list(PROFILES))
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, options.bundle, options.pictures)
        for cache, more in (("cache", ()), ("no cache", ("--cache-bytes", "0"))):
            server, url = started(options, *more)
            try:
                run_profile(options, folder, url, options.profiles[0])  # warm
                for profile in options.profiles:
                    runs = [run_profile(options, folder, url, profile) for _ in range(2)]
                    rates = [run["request_throughput"] for run in runs]
                    differ = round(abs(rates[1] / rates[0] - 1), 4)
                    results[f"{profile}, {cache}"] = {"runs": runs, "runs_differ_by": differ}
            finally:
                server.terminate()
                server.wait(60)
    print(json.dumps({"cpu": read_cpu().name, "cores": os.cpu_count(), "results": results}, indent=1))
    return 1 if any(run["errors"] for found in results.values() for run in found["runs"]) else 0


if __name__ == "__main__":
    sys.exit(main())
