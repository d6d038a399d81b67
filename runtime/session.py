"""A bundle, opened for questions: image and text in, answer out."""

from __future__ import annotations

import collections.abc as abc
import functools
import os
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal

from tokenizers import Tokenizer

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.graphs import Parts
from sdrpn.bundle.work import STEP_GRAPHS
from sdrpn.families.family import Resize
from sdrpn.families.registry import family_of
from sdrpn.host.links import AllowLinks
from sdrpn.method.policy import OWN, Roi
from sdrpn.method.roi import RoiPolicy
from sdrpn.method.spec import ModelSpec, Vision
from sdrpn.runtime.asking import Asking
from sdrpn.runtime.backends.registry import AUTOMATIC
from sdrpn.runtime.backends.runner import Backend, HasSteps, Runner
from sdrpn.runtime.backends.tensorrt import EngineOptions
from sdrpn.runtime.decoder import Decoder
from sdrpn.runtime.embedding import TokenEmbedding
from sdrpn.runtime.opening import OpeningRequest, RunOptions, batch_of, enough_memory, prefix_bytes_of
from sdrpn.runtime.pictures.picture import JpegMode, Picture, PictureSource
from sdrpn.runtime.prefix_store import PrefixStore
from sdrpn.runtime.questions import Budget, Questions
from sdrpn.runtime.scheduler import Load, Scheduler
from sdrpn.runtime.two_pass import TwoPass
from sdrpn.text.prompt import load_tokenizer

__all__ = ["Session"]


class Session(Asking):
    """Answers questions, several at once in one batch; keeps the prefixes of recent pictures.

    Threads may share a session: at most `max_batch` questions are answered at once, others wait. A stream that is not
    read continues with the others.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        backend: Backend,
        engines: Mapping[str, Path] | None = None,
        note: str | None = None,
        *,
        jpeg: JpegMode = "exact",
        threads: int | None = None,
        contexts: abc.Sequence[int] = (),
        engine_batch: int | None = None,
        max_batch: int | None = None,
        prefix_bytes: int | None = None,
        target: str | None = None,
        weights_read: Mapping[str, int] | None = None,
    ) -> None:
        """Load the variant's graphs, all or those that a look needs. Use `Session.open` to open a bundle.

        Args:
            engines: files that the backend loads instead of the bundle's graphs, by graph
            note: the first part of `backend_note`
            jpeg, threads: as in `open`
            contexts: cache lengths that the engines have profiles for, if there are several
            engine_batch: the most sequences that a decode step of the engines takes; None: these are graphs
            max_batch, prefix_bytes: as in `open`
            target: of the engines; None: these are graphs
            weights_read: graph -> bytes of weights that a run reads; None: not known
        """
        self._weights_read = None if weights_read is None else dict(weights_read)
        self.bundle, self.variant, self.target = bundle, variant, target
        self.backend, self._library, self._note = backend.name, backend, note
        batch = batch_of(max_batch, backend, engine_batch)
        spec, tokenizer = bundle.spec, bundle.manifest.tokenizer
        # Before the graphs, which may take a minute to load.
        text = load_tokenizer(bundle.file(tokenizer)) if tokenizer is not None else None
        with ExitStack() as resources:
            self._embedding = resources.enter_context(
                TokenEmbedding(
                    bundle.file(variant.embedding), spec.llm.vocabulary, spec.llm.width, variant.embedding_dtype
                )
            )
            runners: dict[str, Runner] = {}
            for name, graph in variant.graphs.items():
                path = bundle.file(graph.file) if engines is None else engines[name]
                runners[name] = backend.load(graph, path)
                resources.callback(runners[name].close)
            if self._weights_read is not None:
                own = {name: runner.step_bytes for name, runner in runners.items() if isinstance(runner, HasSteps)}
                self._weights_read |= {name: size for name, size in own.items() if size is not None}
            vision = runners.pop("vision")
            rotary, axis_of = bundle.manifest.rotary, family_of(spec).axis_of(spec)
            self._decoder = Decoder(
                backend,
                runners,
                spec.llm.width,
                spec.llm.vocabulary,
                rotary,
                contexts,
                axis_of,
                # On a GPU memory was planned for all of them: none is looked for while others answer.
                slots=batch if backend.on == "gpu" else 1,
            )
            resources.callback(self._decoder.close)
            context = min(bundle.manifest.max_context, self._decoder.slots.max_rows or bundle.manifest.max_context)
            may_grow = functools.partial(enough_memory, backend)
            prefixes = PrefixStore(self._decoder.slots, prefix_bytes_of(prefix_bytes, backend), may_grow)
            self._two_pass = TwoPass(spec, context, backend, vision, self._decoder, self._embedding, prefixes)
            scheduler = Scheduler(
                self._two_pass,
                self._decoder,
                self._embedding,
                prefixes,
                backend.cancellation,
                batch,
                may_grow,
            )
            questions = Questions(bundle, variant, self._two_pass, scheduler, text, jpeg, threads)
            super().__init__(questions, scheduler)
            self._resources = resources.pop_all()

    @classmethod
    def open(
        cls,
        bundle_dir: str | os.PathLike[str],
        *,
        backend: str = AUTOMATIC,
        threads: int | None = None,
        variant: str | None = None,
        target: str | None = None,
        device: int | str | None = None,
        engine_options: EngineOptions | None = None,
        optimized: bool = True,
        accurate: bool = False,
        activation_block: int | None = None,
        kv_cache: Literal["int8"] | None = None,
        decode_copy: bool | None = None,
        vision_type: Literal["bf16"] | None = None,
        verify: bool = True,
        jpeg: JpegMode = "exact",
        allow_links: AllowLinks = (),
        download: bool = False,
        max_batch: int | None = None,
        prefix_bytes: int | None = None,
        parts: Parts = "all",
        require_signed: str | os.PathLike[str] | abc.Sequence[str | os.PathLike[str]] = (),
        decode: JpegMode | None = None,
    ) -> Session:
        """Open a bundle.

        Args:
            bundle_dir: a folder as `sdrpn export` writes it, a release, or a store of `sdrpn release install`, whose
                current release is meant; the str "demo" is the shipped bundle, and "ORGANISATION/MODEL" one of Hugging
                Face's hub, from the local cache
            backend: "onnxruntime" (CPU), "openvino" (CPU), "onnxruntime-cuda", "tensorrt" (the engines of `sdrpn
                build`), or "auto": engines if some fit this machine's GPU, else "openvino" where it is installed and
                the model is not small, else "onnxruntime"
            threads: CPU threads; None: one per core that is free when this process first asks, at most OMP_NUM_THREADS,
                and a single one for a small model
            variant: such as "primitive-fp16"; None: that of the engines, or the one that suits the library best
            target: the target whose engines run; None: the first that fit
            device: the GPU, as CUDA numbers them; or a device of OpenVINO by its name: "CPU", "GPU", "GPU.1", "NPU", or
                "AUTO" for the one that it takes itself. None: that of the engine options, by default the first
            engine_options: options for running engines
            optimized: on a CPU, use the graphs of `sdrpn optimize` if they fit this machine
            accurate: on a CPU, multiply quantised matrices with floats, not with activations in blocks of 8 bits, which
                is several times as fast; not with the graphs of `sdrpn optimize`
            activation_block: with OpenVINO, how many activations share a scale where they meet quantised matrices: a
                multiple of 16 that the blocks of the weights are a multiple of; 0: they stay floats. None: as many as
                weights do
            kv_cache: "int8": with OpenVINO on a CPU, caches of trunk and tail in 8 bits, by row;
                None: as the graphs declare them
            decode_copy: with OpenVINO on a CPU, keep the matrices of trunk and tail once more in memory, in the form
                that a decode step reads fastest; None: where those of a graph take at most 0.5 GB
            vision_type: "bf16": with OpenVINO on a CPU that has instructions for it, compute the vision tower in
                bfloat16, as the official evaluations do; None: in fp32
            verify: False skips the digests of large files (sizes are always compared)
            jpeg: how JPEG files are decoded. "fast": at a fraction of the size for the first look (DCT scaling), which
                is quicker and not exact; "gpu": with nvImageCodec
            allow_links: folders that links of the bundle may lead to, besides itself and its cache's blobs; True: any
            download: fetch what the local cache lacks of a model of Hugging Face's hub
            max_batch: most questions that are answered at once, each with caches of its own: on a CPU made when they
                are first needed, on a GPU all with the first question. None: 4 on a CPU, with engines
                as many as they were built for, else 1
            prefix_bytes: most memory for what was computed of pictures besides those last asked about, so that
                questions about several in turn reuse them; None: 256 MB on a CPU, else 0
            parts: "look": load vision, trunk and RPN alone, which `look` needs; nothing can be answered then
            require_signed: public keys in PEM files, one of which must have signed the release that the bundle is part
                of; all its files are then compared with the signature
            decode: the former name of `jpeg`; removed in the next version
        Raises: BadBundle, BadInput, EngineMismatch or MissingDependency before any graph is loaded.
        """
        if decode is not None:
            jpeg = _jpeg_of_former_name(decode)
        run = RunOptions(
            backend=backend,
            threads=threads,
            variant=variant,
            target=target,
            device=device,
            engine_options=engine_options,
            optimized=optimized,
            accurate=accurate,
            activation_block=activation_block,
            kv_cache=kv_cache,
            decode_copy=decode_copy,
            vision_type=vision_type,
            verify=verify,
            require_signed=_paths(require_signed),
        )
        request = OpeningRequest(bundle_dir, run, allow_links, download, max_batch, parts)
        return cls.open_with(request, jpeg=jpeg, prefix_bytes=prefix_bytes)

    @classmethod
    def open_with(
        cls, request: OpeningRequest, *, jpeg: JpegMode = "exact", prefix_bytes: int | None = None
    ) -> Session:
        """As `open`, with its arguments in one object."""
        chosen = request.choose()
        return cls(
            chosen.bundle,
            chosen.variant,
            chosen.backend,
            chosen.engines,
            chosen.note,
            jpeg=jpeg,
            threads=request.run.threads,
            contexts=chosen.contexts,
            engine_batch=chosen.engine_batch,
            max_batch=request.max_batch,
            prefix_bytes=prefix_bytes,
            target=chosen.target,
            weights_read=chosen.weights_read,
        )

    @property
    def backend_note(self) -> str | None:
        """Why better engines or graphs are not used, or the backend is slower than it could be; None: no remark."""
        notes = [note for note in (self._note, self._library.note) if note is not None]
        return "; ".join(notes) or None

    @property
    def on_cpu(self) -> bool:
        """Whether graphs run on the CPU."""
        return self._library.on == "cpu"

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.bundle.spec

    @property
    def policy(self) -> RoiPolicy:
        """By what the model looks again unless something else is asked for."""
        return self.bundle.manifest.own_policy.roi

    def limit_stalls(self, most_s: float | None) -> None:
        """Divide prefills so that answers in progress wait at most about so long for their next token; None: do not.

        Encoding a picture and a decode step are not divided.
        """
        self._scheduler.limit_stalls(most_s)

    @property
    def load(self) -> Load:
        """How many questions run and wait now, and how many decode steps there were."""
        return self._scheduler.load

    def step_bytes(self, context: int) -> int | None:
        """Bytes that a decode step of one sequence reads on a CPU: weights, and caches of `context` rows.

        Both in the form in which the library holds them. None: not known, as on a GPU
        """
        if self._weights_read is None or any(graph not in self._weights_read for graph in STEP_GRAPHS):
            return None
        caches = self._decoder.slots.caches
        return sum(self._weights_read[graph] + context * caches[graph].row_bytes for graph in STEP_GRAPHS)

    @property
    def max_batch(self) -> int:
        """Most questions that are answered at once."""
        return self._scheduler.max_batch

    @property
    def max_context(self) -> int:
        """Most tokens of prompt, crops and answer together."""
        return self._two_pass.max_context

    def vision(self, image_tokens: tuple[int, int] | None = None, resize: Resize | None = None) -> Vision:
        """How pictures are seen with a budget, as `answer` takes it. Raises BadInput where the model has none such."""
        return self._questions.vision(Budget(image_tokens, resize))

    def gate_threshold(self, roi: Roi = OWN) -> float | None:
        """The score of the gate below which `answer` would look once; None: there is no gate, or no second look."""
        rpn = self.spec.rpn
        return self._questions.plan(roi).gate_threshold if rpn is not None and rpn.has_gate else None

    @property
    def on(self) -> Literal["cpu", "gpu"]:
        """Where its graphs run."""
        return self._library.on

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What turns text into tokens; None: the bundle has none."""
        return self._questions.tokenizer

    def open_picture(self, image: PictureSource) -> Picture:
        """A picture as `answer` would open it; it can be passed in place of the source. Raises BadImage, BadInput."""
        return self._questions.opened(image, "rgb")

    def forget_image(self) -> None:
        """Drop all prefixes, so that the next question reuses nothing: for fair timing."""
        self._scheduler.forget_prefixes()

    def cancel(self) -> None:
        """End the answers in progress, in any thread: they raise Cancelled there.

        A running graph ends within a fraction of a second. Waiting questions are still answered.
        """
        self._scheduler.cancel()

    def close(self) -> None:
        """Wait for the current step of another thread, then free graphs and caches; can be called twice.

        Continuing an incomplete answer raises RunFailed; call `cancel` before `close` to avoid the wait.
        """
        self._scheduler.close()
        self._resources.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _jpeg_of_former_name(decode: JpegMode) -> JpegMode:
    warnings.warn("decode is jpeg now; the old name goes with the next version", DeprecationWarning, stacklevel=3)
    return decode


def _paths(given: str | os.PathLike[str] | abc.Sequence[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """One path, or several."""
    return tuple(map(Path, [given] if isinstance(given, (str, os.PathLike)) else given))
