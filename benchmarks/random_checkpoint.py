"""Write a random checkpoint in the official layout, tensor by tensor: 13.5 GB at 7B, in the memory of one tensor.

python benchmarks/random_checkpoint.py /data/random-7b --size 7b
python benchmarks/random_checkpoint.py /data/random-4b --size qwen3-vl-4b-q-zoom   # any model that `sdrpn plan` knows
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

from shapes import SHAPES

from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.families.registry import published_shapes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new or empty folder")
    sizes = {**SHAPES, **published_shapes()}
    parser.add_argument("--size", choices=sizes, default="7b")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float16")
    args = parser.parse_args()
    start = time.perf_counter()
    write_random_checkpoint(args.out, sizes[args.size], dtype=args.dtype, with_tokenizer=True, roi_gain=3.0)
    print(
        json.dumps(
            {
                "out": str(args.out),
                "size_bytes": sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file()),
                "seconds": round(time.perf_counter() - start, 1),
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
