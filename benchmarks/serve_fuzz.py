"""Requests that schemathesis makes of `/openapi.json`, to `sdrpn serve`: none may end with a status of 500 or above.

    python -m venv fuzz && fuzz/bin/pip install schemathesis       # in an environment of its own
    python benchmarks/serve_fuzz.py --schemathesis fuzz/bin/schemathesis [BUNDLE] [--requests 10000] [--seconds 1800]

The server is a process of its own; its log says how many requests came, and how each ended. Rounds with other seeds
follow each other until there were enough requests, or the time is over. Descriptors and memory are the server's, after
the first round and at the end. Prints JSON; the exit code is 1 for a status of 500 or above (but for 503 while the
server ends), a descriptor that is left open, or a server that does not answer a question at the end.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from sdrpn.tags import shipped_scene

MOST_ROUND_S = 120
ALLOWED_DESCRIPTORS = 4  # connections that were just closed


class Server:
    """`sdrpn serve`, whose log is a file."""

    def __init__(self, bundle: str, log: Path) -> None:
        command = [sys.executable, "-m", "sdrpn", "serve", bundle, "--port", "0", "--threads", "1"]
        command += ["--log-format", "json", "--max-new-tokens", "8", "--timeout-s", "60"]
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stderr=file)
        deadline = time.monotonic() + 120
        while not (found := re.search(r"listening on (\S+)", log.read_text())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start: {log.read_text()[-500:]}")
            time.sleep(0.1)
        self.url = found[1]

    def statuses(self) -> Counter[tuple[str, int]]:
        """Requests so far, by path and status."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        asked = [line for line in lines if line["kind"] == "request" and line["path"] != "/openapi.json"]
        return Counter((line["path"] if line["path"] in PATHS else "other", line.get("status", 0)) for line in asked)

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def memory_bytes(self) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", text)[0])

    def answers(self) -> bool:
        """Whether it still answers a question in words."""
        body = {"messages": [{"role": "user", "content": shipped_scene().question}], "max_tokens": 4}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60).status_code == 200


PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/look", "/v1/models", "/metrics", "/healthz", "/readyz")


def fuzzed(options: argparse.Namespace, server: Server, seed: int, seconds: float) -> int:
    """One round. Returns schemathesis' exit code."""
    command = [
        str(Path(options.schemathesis).absolute()),
        "run",
        f"{server.url}/openapi.json",
        "--checks",
        "not_a_server_error",
    ]
    # Each reload opens the bundle again, which takes as long as a thousand other requests.
    command += ["--exclude-path", "/admin/reload", "--phases", "coverage,fuzzing", "--workers", "2", "--no-shrink"]
    command += ["--seed", str(seed), "--max-examples", str(options.examples), "--suppress-health-check", "all"]
    command += ["--max-time", str(max(1, int(min(seconds, MOST_ROUND_S)))), "--continue-on-failure"]
    # It keeps what it found in the folder where it runs.
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=seconds + MOST_ROUND_S, cwd=server.log.parent
    )
    if done.returncode:
        print(done.stdout[-3000:], file=sys.stderr)
    return done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="demo")
    parser.add_argument("--schemathesis", required=True, help="the program of that name")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--examples", type=int, default=500, help="most requests per endpoint in a round")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start, rounds, codes = time.monotonic(), 0, list[int]()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(options.bundle, Path(folder) / "log")
        try:
            after_first: dict[str, int] = {}
            while (left_s := options.seconds - (time.monotonic() - start)) > 0:
                codes.append(fuzzed(options, server, options.seed + rounds, left_s))
                rounds += 1
                if not after_first:
                    after_first = {"descriptors": server.descriptors(), "memory_bytes": server.memory_bytes()}
                if server.statuses().total() >= options.requests:
                    break
            time.sleep(1)  # connections are closed
            answers, statuses = server.answers(), server.statuses()
            at_end = {"descriptors": server.descriptors(), "memory_bytes": server.memory_bytes()}
        finally:
            server.process.terminate()
            server.process.wait(60)
    failed = {f"{path} {status}": count for (path, status), count in statuses.items() if not 0 < status < 500}
    by_path: dict[str, Any] = {}
    for (path, status), count in sorted(statuses.items()):
        by_path.setdefault(path, {})[str(status)] = count
    found = {
        "requests": statuses.total(),
        "seconds": round(time.monotonic() - start, 1),
        "rounds": rounds,
        "exit_codes": codes,
        "statuses": by_path,
        "failed": failed,
        "after_first_round": after_first,
        "at_end": at_end,
        "answers_at_end": answers,
    }
    print(json.dumps(found, indent=1))
    leaked = at_end["descriptors"] > after_first["descriptors"] + ALLOWED_DESCRIPTORS
    return 1 if failed or leaked or not answers else 0


if __name__ == "__main__":
    sys.exit(main())
