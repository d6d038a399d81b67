"""What a second question about a picture costs `sdrpn serve`, against the first one: prefills by time, one at a time.

    python benchmarks/serve_second.py [BUNDLE] [--variant NAME] [--backend NAME] [--pictures 8] [--threads N] [--json]

Every picture is new to the server, and both questions about it have as many tokens. One look (`roi.enabled: false`) is
what both have in common, whatever a map says; with the model's own policy a question may look again, and a crop is its
own. Prefill is the time of all graphs up to the first token, as the reply's stages say; the first token's time has the
picture's decoding as well, which both questions need. Prints medians over the pictures.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import statistics
import sys
from typing import Any

import httpx
from serve_load import begun

from sdrpn.host.machine import read_cpu
from sdrpn.tags import tag_samples

SEED = 21
QUESTIONS = ("what is the code on the blue tag ?", "what is the code on the pink tag ?")
# Stages of graphs before the first token.
PREFILL = ("vision_s", "trunk_s", "gate_s", "rpn_s", "roi_decode_s", "crop_vision_s", "crop_trunk_s", "tail_prefill_s")
FORMS: dict[str, dict[str, Any]] = {"one look": {"enabled": False}, "the model's own policy": {}}


def asked(url: str, picture: str, question: str, roi: dict[str, Any]) -> dict[str, float]:
    """Seconds of an answer of one token."""
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1, "roi": roi}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600)
    reply.raise_for_status()
    found = reply.json()
    stages = found["sdrpn"]["stages"]
    known = found["usage"]["prompt_tokens_details"]["cached_tokens"]
    return {"prefill": sum(stages[name] for name in PREFILL), "first_token": stages["first_token_s"], "known": known}


def measured(url: str, pictures: list[str], roi: dict[str, Any]) -> dict[str, Any]:
    pairs = [[asked(url, picture, question, roi) for question in QUESTIONS] for picture in pictures]
    found: dict[str, Any] = {"known_tokens": [pairs[0][0]["known"], pairs[0][1]["known"]]}
    for name in ("prefill", "first_token"):
        first, second = (statistics.median(pair[turn][name] for pair in pairs) for turn in (0, 1))
        found[name] = {
            "first_s": round(first, 5),
            "second_s": round(second, 5),
            "second_of_first": round(statistics.median(pair[1][name] / pair[0][name] for pair in pairs), 4),
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="demo")
    parser.add_argument("--variant")
    parser.add_argument("--backend")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    server = begun(options.bundle, options)
    try:
        results = {}
        for number, (name, roi) in enumerate(FORMS.items()):
            # The first picture warms; those of another form are others.
            urls = []
            for sample in tag_samples("heldout", options.pictures + 1, SEED + number):
                file = io.BytesIO()
                sample.image.save(file, "PNG")
                urls.append(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
            measured(server.url, urls[:1], roi)
            results[name] = measured(server.url, urls[1:], roi)
    finally:
        server.process.terminate()
        server.process.wait(60)
    if options.json:
        machine = {"cpu": read_cpu().name, "cores": os.cpu_count()}
        print(json.dumps({"format_version": 1, **machine, "options": vars(options), "results": results}, indent=1))
        return 0
    for name, found in results.items():
        for what in ("prefill", "first_token"):
            times = found[what]
            print(
                f"{name:24} {what:12} first {1000 * times['first_s']:.1f} ms, "
                f"second {1000 * times['second_s']:.1f} ms: {times['second_of_first']:.3f} of it; "
                f"known tokens {found['known_tokens'][1]}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
