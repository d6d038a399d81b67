"""Many pictures in one job with Ray Data: answers or regions into Parquet files. A job that was killed goes on.

    python examples/ray/batch.py answer demo PICTURES --question "what is the code ?" --out answers --replicas 2
    python examples/ray/batch.py look demo rows.parquet --out looks        # columns: id, image, question

The input is a folder of pictures, whose paths below it are the ids, or Parquet (a file or a folder of them) with an id
per row, a picture (its bytes, a struct with `bytes`, or a path) and a question. The output has a row for each row of
the input; one that cannot be answered has an `error`. The same command again does what is left. Input and output lie on
a disk that all machines share.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this one

import installed  # noqa: F401  # before Ray
import pyarrow
import ray
from cluster import add_cluster_arguments, add_replica_arguments, cluster, cores_for
from parts import Part, begin, parts_of, rows_of, write_part

from sdrpn import BadInput, SdrpnError, Session
from sdrpn.bundle.bundle import MANIFEST_NAME, open_bundle
from sdrpn.bundle.shipped import bundle_path

BOXES = pyarrow.list_(pyarrow.list_(pyarrow.int32(), 4))
ANSWER_SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("question", pyarrow.string()),
        ("answer", pyarrow.string()),
        ("token_ids", pyarrow.list_(pyarrow.int32())),
        ("finish_reason", pyarrow.string()),
        ("boxes_xyxy_px", BOXES),
        ("error", pyarrow.string()),
    ]
)
LOOK_SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("question", pyarrow.string()),
        ("boxes_xyxy_px", BOXES),
        ("scores", pyarrow.list_(pyarrow.float32())),  # the largest in each box
        ("note", pyarrow.string()),
        ("error", pyarrow.string()),
    ]
)


@dataclass(frozen=True)
class Job:
    """What every row is asked. question: None: the rows have their own."""

    bundle: str
    question: str | None
    images: str | None  # the folder of pictures that rows name
    max_new_tokens: int = 64
    target: str | None = None
    threads: int | None = None
    max_batch: int | None = None


class Asker:
    """A session that answers parts; a process of Ray has one."""

    def __init__(self, job: Job, out: Path) -> None:
        self._job, self._out = job, out
        self._session = Session.open(job.bundle, target=job.target, threads=job.threads, max_batch=job.max_batch)

    def __call__(self, row: dict[str, Any]) -> dict[str, int]:
        """Answer a part, and write its file."""
        part = Part(**row["item"])
        rows = rows_of(part)
        questions = [self._job.question or row.get("question") or "" for row in rows]
        found = [
            {"id": str(row["id"]), "question": question, **outcome}
            for row, question, outcome in zip(rows, questions, self._found(rows, questions), strict=True)
        ]
        write_part(part, self._out, found, self._schema)
        return {"rows": len(found), "errors": sum("error" in row for row in found)}

    _schema = ANSWER_SCHEMA

    def _found(self, rows: list[dict[str, Any]], questions: list[str]) -> Iterator[dict[str, Any]]:
        pairs = ((self._picture(row), question) for row, question in zip(rows, questions, strict=True))
        for answer in self._session.answers(pairs, max_new_tokens=self._job.max_new_tokens):
            if isinstance(answer, SdrpnError):
                yield {"error": str(answer)}
            else:
                yield {
                    "answer": answer.text,
                    "token_ids": list(answer.token_ids),
                    "finish_reason": answer.finish_reason,
                    "boxes_xyxy_px": [list(box) for box in answer.boxes_xyxy_px],
                }

    def _picture(self, row: dict[str, Any]) -> bytes | Path:
        image = row["image"]
        if isinstance(image, dict):  # as data sets of Hugging Face have it
            image = image.get("bytes") or image.get("path")
        if isinstance(image, bytes):
            return image
        return Path(self._job.images or ".", str(image))


class Looker(Asker):
    """Regions without words."""

    _schema = LOOK_SCHEMA

    def _found(self, rows: list[dict[str, Any]], questions: list[str]) -> Iterator[dict[str, Any]]:
        for row, question in zip(rows, questions, strict=True):
            try:
                look = self._session.look(self._picture(row), question)
            except SdrpnError as error:
                yield {"error": str(error)}
                continue
            yield {
                "boxes_xyxy_px": [list(box) for box in look.boxes_xyxy_px],
                "scores": [region.score for region in look.boxes],
                "note": look.note,
            }


def run(options: argparse.Namespace) -> int:
    """Run the job, or what is left of it."""
    parts = parts_of(options.input, options.rows_per_file)
    if options.question is None and parts[0].names:
        raise BadInput("pictures have no question of their own; name one", options=("question",))
    images = None if options.images is None else str(options.images.resolve())
    bundle = open_bundle(bundle_path(options.bundle)).path.resolve()
    job = Job(
        str(bundle),
        options.question,
        images,
        options.max_new_tokens,
        options.target,
        options.threads,
        options.max_batch,
    )
    manifest = hashlib.sha256((bundle / MANIFEST_NAME).read_bytes()).hexdigest()
    settings = {"what": options.what, "bundle_sha256": manifest, "question": options.question, "images": images}
    out = options.out.resolve()
    left = begin(out, parts, {**settings, "max_new_tokens": options.max_new_tokens, "target": options.target})
    rows = errors = 0
    if left:
        found = ray.data.from_items([{"item": vars(part)} for part in left], override_num_blocks=len(left)).map(
            {"answer": Asker, "look": Looker}[options.what],
            fn_constructor_args=(job, out),
            compute=ray.data.ActorPoolStrategy(size=options.replicas),
            num_cpus=options.cpus,
            num_gpus=options.gpus,
        )
        for done in found.iter_rows():
            rows, errors = rows + done["rows"], errors + done["errors"]
    print(
        f"{len(parts) - len(left)} of {len(parts)} parts were there; {rows} rows, {errors} with an error",
        file=sys.stderr,
    )
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("what", choices=("answer", "look"))
    found.add_argument("bundle", help="a bundle or a release, at the same path on every machine; or demo")
    found.add_argument("input", type=Path, help="folder of pictures, or Parquet")
    found.add_argument("--out", type=Path, required=True, help="folder of Parquet files; a job goes on in its own")
    found.add_argument("--question", help="asked of every row; without: the column question")
    found.add_argument("--images", type=Path, help="folder of the pictures that rows name")
    found.add_argument("--max-new-tokens", type=int, default=64)
    found.add_argument("--replicas", type=int, default=1, help="sessions (default: 1)")
    found.add_argument("--rows-per-file", type=int, default=64, help="rows that are lost at most (default: 64)")
    add_replica_arguments(found, "session")
    found.add_argument("--target", help="the engines of a session")
    found.add_argument("--max-batch", type=int, help="questions at once (default: 4)")
    add_cluster_arguments(found)
    return found


def main() -> int:
    """As the command line says."""
    options = parser().parse_args()
    if options.threads is None and not options.gpus:
        options.threads = max(1, int(options.cpus))
    try:
        with cluster(options, num_cpus=cores_for(options)):
            return run(options)
    except SdrpnError as error:
        print(f"batch: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
