"""A bundle, opened for questions: image and text in, answer out."""

from __future__ import annotations

import asyncio
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
from sdrpn.errors import BadInput, SdrpnError
from sdrpn.families.family import Resize
from sdrpn.families.registry import family_of
from sdrpn.host.field_types import require_type
from sdrpn.host.links import AllowLinks
from sdrpn.method.policy import OWN, Roi
from sdrpn.method.roi import Decide, RoiPolicy
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime.answer import Answer
from sdrpn.runtime.backends.registry import AUTOMATIC
from sdrpn.runtime.backends.runner import Backend, Runner
from sdrpn.runtime.backends.tensorrt import EngineOptions
from sdrpn.runtime.decoder import Decoder
from sdrpn.runtime.embedding import TokenEmbedding
from sdrpn.runtime.look import Look
from sdrpn.runtime.looking import LookQuestion
from sdrpn.runtime.opening import OpeningRequest, batch_of, enough_memory, prefix_bytes_of
from sdrpn.runtime.pictures.frames import Channels
from sdrpn.runtime.pictures.picture import JpegMode, Picture, PictureSource
from sdrpn.runtime.prefix_store import PrefixStore
from sdrpn.runtime.questions import AnswerOptions, Budget, Images, Questions, images_of
from sdrpn.runtime.sampling import GREEDY, Sampling
from sdrpn.runtime.scheduler import Load, Scheduler
from sdrpn.runtime.stream import AnswerStream, AsyncAnswerStream
from sdrpn.runtime.token_ids import ids_of
from sdrpn.runtime.two_pass import TwoPass
from sdrpn.text.prompt import load_tokenizer
from sdrpn.text.turns import Turn, conversation

__all__ = ["Session"]


class Session:
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
    ) -> None:
        """Load the variant's graphs, all or those that a look needs. Use `Session.open` to open a bundle.

        Args:
            engines: files that the backend loads instead of the bundle's graphs, by graph
            note: the first part of `backend_note`
            jpeg, threads: as in `open`
            contexts: cache lengths that the engines have profiles for, if there are several
            engine_batch: the most sequences that a decode step of the engines takes; None: these are graphs
            max_batch, prefix_bytes: as in `open`
        """
        self.bundle, self.variant = bundle, variant
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
            self._scheduler = Scheduler(
                self._two_pass,
                self._decoder,
                self._embedding,
                prefixes,
                backend.cancellation,
                batch,
                may_grow,
            )
            self._questions = Questions(bundle, variant, self._two_pass, self._scheduler, text, jpeg, threads)
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
        device: int | None = None,
        engine_options: EngineOptions | None = None,
        optimized: bool = True,
        accurate: bool = False,
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
            device: the GPU, as CUDA numbers them; None: that of the engine options, by default the first
            engine_options: options for running engines
            optimized: on a CPU, use the graphs of `sdrpn optimize` if they fit this machine
            accurate: on a CPU, multiply quantised matrices with floats, not with activations in blocks of 8 bits, which
                is several times as fast; not with the graphs of `sdrpn optimize`
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
        request = OpeningRequest(
            bundle_dir,
            backend,
            threads,
            variant,
            target,
            device,
            engine_options,
            optimized=optimized,
            accurate=accurate,
            verify=verify,
            allow_links=allow_links,
            download=download,
            max_batch=max_batch,
            parts=parts,
            require_signed=_paths(require_signed),
        )
        chosen = request.choose()
        return cls(
            chosen.bundle,
            chosen.variant,
            chosen.backend,
            chosen.engines,
            chosen.note,
            jpeg=jpeg,
            threads=threads,
            contexts=chosen.contexts,
            engine_batch=chosen.engine_batch,
            max_batch=max_batch,
            prefix_bytes=prefix_bytes,
        )

    @property
    def backend_note(self) -> str | None:
        """Why better engines or graphs are not used, or the backend is slower than it could be; None: no remark."""
        notes = [note for note in (self._note, self._library.note) if note is not None]
        return "; ".join(notes) or None

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.bundle.spec

    @property
    def policy(self) -> RoiPolicy:
        """By what the model looks again unless something else is asked for."""
        return self.bundle.manifest.own_policy.roi

    def answer(
        self,
        image: Images,
        question: str,
        *,
        history: abc.Sequence[Turn] = (),
        roi: Roi = OWN,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Answer:
        """Answer a question about an image.

        Args:
            image: a path, the bytes of a picture file, a PIL image, a Picture, or a frame (H, W, 3) of uint8 or of
                floats in 0..1: an array, or a tensor of PyTorch or CuPy, which is copied from a GPU. A list of several,
                or None for a question without one, are answered with one look
            question: text; a bundle without a tokenizer needs `answer_ids`
            history: what was said before: turns of the user and the assistant, after at most one of the system. The
                images are shown in the user's first turn, unless turns say otherwise (`Turn.images`)
            roi: how the RoI map becomes crops: a RoiPolicy; a threshold, or a RoiChange, for what differs from the
                model's own policy; None: one look, no crops
            max_new_tokens: maximum length of the answer
            sampling: greedy by default
            trace: keep intermediate results
            channels: the order that a frame has them in: "rgb", or "bgr" as OpenCV has it
            image_tokens: the least and the most of the picture, and of a crop, for models whose pictures have a budget;
                None: the checkpoint's
            resize: "once", or "official": twice, as the official pipeline does it; None: as the model has it
        Raises: BadInput and its subclasses for a bad request, RunFailed if a graph failed.
        """
        return self.stream(
            image,
            question,
            history=history,
            roi=roi,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            trace=trace,
            channels=channels,
            image_tokens=image_tokens,
            resize=resize,
        ).finish()

    def answers(
        self,
        questions: abc.Iterable[tuple[PictureSource, str]],
        *,
        roi: Roi = OWN,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> list[Answer | SdrpnError]:
        """Answer many questions, several at once.

        Args:
            questions: (picture, question) pairs, as `answer` takes them; read as needed
            roi, max_new_tokens, sampling, trace, channels, image_tokens, resize: as in `answer`, for all questions
        Returns: in order, each answer, or the error that `answer` would have raised: a failure does not affect the
            others
        Raises: RunFailed if the session is closed meanwhile
        """
        options = AnswerOptions(roi, max_new_tokens, sampling, trace, channels, budget=Budget(image_tokens, resize))
        found: dict[int, Answer | SdrpnError] = {}
        begun: dict[int, AnswerStream] = {}
        try:
            for number, (image, question) in enumerate(questions):
                self._scheduler.work_until(lambda: _on_their_way(begun) < 2 * self._scheduler.max_batch)
                # Pictures are large: release those of answered questions.
                found |= {n: _finished(begun.pop(n)) for n, stream in list(begun.items()) if stream.over}
                try:
                    begun[number] = self._questions.stream(image, question, options)
                    begun[number].submit()
                except SdrpnError as error:
                    self._scheduler.require_open()
                    found[number] = error
            found |= {number: _finished(stream) for number, stream in begun.items()}
        finally:
            for stream in begun.values():  # after an interruption, end all of them
                stream.close()
        return [found[number] for number in sorted(found)]

    async def answer_async(
        self,
        image: Images,
        question: str,
        *,
        history: abc.Sequence[Turn] = (),
        roi: Roi = OWN,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Answer:
        """As `answer`, without blocking the event loop. Cancelling the task ends the answer."""
        return await self.stream_async(
            image,
            question,
            history=history,
            roi=roi,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            trace=trace,
            channels=channels,
            image_tokens=image_tokens,
            resize=resize,
        ).finish()

    def stream_async(
        self,
        image: Images,
        question: str,
        *,
        history: abc.Sequence[Turn] = (),
        roi: Roi = OWN,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> AsyncAnswerStream:
        """As `stream`, for `async for`; it begins when it is first read. Cancelling the task ends the answer."""
        budget, turns = Budget(image_tokens, resize), _turns(image, question, history)
        options = AnswerOptions(roi, max_new_tokens, sampling, trace, channels, budget=budget, turns=turns)
        return self.stream_with(image, question, options)

    def stream_with(self, image: Images, question: str, options: AnswerOptions) -> AsyncAnswerStream:
        """As `stream_async`, with all that an answer can be asked for."""
        return AsyncAnswerStream(self._scheduler, lambda: self._questions.stream(image, question, options))

    def stream(
        self,
        image: Images,
        question: str,
        *,
        history: abc.Sequence[Turn] = (),
        roi: Roi = OWN,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> AnswerStream:
        """As `answer`, but an iterator of text pieces; its `answer` is available after the last one."""
        budget, turns = Budget(image_tokens, resize), _turns(image, question, history)
        options = AnswerOptions(roi, max_new_tokens, sampling, trace, channels, budget=budget, turns=turns)
        stream = self._questions.stream(image, question, options)
        stream.begin()
        return stream

    def answer_ids(
        self,
        image: PictureSource,
        ids_before_image: abc.Sequence[int],
        ids_after_image: abc.Sequence[int],
        *,
        roi: Roi = OWN,
        decide: Decide | None = None,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        stop_ids: abc.Sequence[int] = (),
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Answer:
        """As `answer`, with the prompt as token ids, BOS included.

        Args:
            decide: chooses the crops instead of `roi`, from the RoI logits and the image's size; `roi` then says by
                which threshold a gate is asked first, if there is one and `roi` is not None
            stop_ids: end the answer, in addition to the model's own stop tokens
        """
        options = AnswerOptions(
            roi, max_new_tokens, sampling, trace, channels, decide, budget=Budget(image_tokens, resize)
        )
        stream = self._questions.stream_of(image, ids_before_image, ids_after_image, options, stop_ids)
        stream.begin()
        return stream.finish()

    def answer_pieces(
        self,
        images: abc.Sequence[PictureSource],
        pieces: abc.Sequence[abc.Sequence[int]],
        *,
        roi: Roi = OWN,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        stop_ids: abc.Sequence[int] = (),
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Answer:
        """As `answer_ids`, for any number of images: `pieces` are the ids before, between and after them.

        Several images are looked at once, and so is a text without one.
        """
        budget = Budget(image_tokens, resize)
        options = AnswerOptions(roi, max_new_tokens, sampling, trace, channels, budget=budget)
        require_type("images", images, abc.Sequence[object])
        require_type("pieces", pieces, abc.Sequence[object])
        ids = tuple(ids_of(f"pieces[{number}]", piece) for number, piece in enumerate(pieces))
        stream = self._questions.stream_of_pieces(tuple(images), ids, options, stop_ids)
        stream.begin()
        return stream.finish()

    def look(
        self,
        image: PictureSource,
        question: str,
        *,
        roi: Roi = OWN,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Look:
        """Where a question points, without words: vision, trunk and RPN run, and nothing above the tap.

        The boxes are those that `answer` would look at again. An answer to the same question goes on from there, and
        questions about the same image reuse it.

        Args:
            image, question, channels, image_tokens, resize: as in `answer`
            roi: how the map becomes boxes, as in `answer`
        Raises: as `answer`; BadInput for a bundle without an RPN.
        """
        asked = [question]
        return self.look_many(image, asked, roi=roi, channels=channels, image_tokens=image_tokens, resize=resize)[0]

    def look_many(
        self,
        image: PictureSource,
        questions: abc.Sequence[str],
        *,
        roi: Roi = OWN,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> list[Look]:
        """Where several questions about one image point, each as `look` finds it; the image is encoded once."""
        _require_several(questions)
        asked = self._questions.looks_in_words(image, channels, questions, roi, Budget(image_tokens, resize))
        return asked.finish()

    async def look_async(
        self,
        image: PictureSource,
        question: str,
        *,
        roi: Roi = OWN,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Look:
        """As `look`, without blocking the event loop. Cancelling the task ends the look."""
        (found,) = await self.look_many_async(
            image, [question], roi=roi, channels=channels, image_tokens=image_tokens, resize=resize
        )
        return found

    async def look_many_async(
        self,
        image: PictureSource,
        questions: abc.Sequence[str],
        *,
        roi: Roi = OWN,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> list[Look]:
        """As `look_many`, without blocking the event loop. Cancelling the task ends the looks."""
        _require_several(questions)
        budget = Budget(image_tokens, resize)
        run = await asyncio.to_thread(self._questions.looks_in_words, image, channels, questions, roi, budget)
        return await run.finish_async()

    def look_ids(
        self,
        image: PictureSource,
        ids_before_image: abc.Sequence[int],
        ids_after_image: abc.Sequence[int],
        *,
        roi: Roi = OWN,
        decide: Decide | None = None,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Look:
        """As `look`, with the prompt as token ids, BOS included. `decide`: as in `answer_ids`."""
        before, after = ids_of("ids_before_image", ids_before_image), ids_of("ids_after_image", ids_after_image)
        budget = Budget(image_tokens, resize)
        plan = self._questions.look_plan(roi, budget) if decide is None else self._questions.plan(roi, budget, decide)
        (found,) = self._questions.looks(image, channels, [LookQuestion(before, after)], plan).finish()
        return found

    def limit_stalls(self, most_s: float | None) -> None:
        """Divide prefills so that answers in progress wait at most about so long for their next token; None: do not.

        Encoding a picture and a decode step are not divided.
        """
        self._scheduler.limit_stalls(most_s)

    @property
    def load(self) -> Load:
        """How many questions run and wait now, and how many decode steps there were."""
        return self._scheduler.load

    @property
    def max_batch(self) -> int:
        """Most questions that are answered at once."""
        return self._scheduler.max_batch

    @property
    def max_context(self) -> int:
        """Most tokens of prompt, crops and answer together."""
        return self._two_pass.max_context

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


def _turns(image: Images, question: str, history: abc.Sequence[Turn]) -> tuple[Turn, ...] | None:
    """The whole conversation; None: the question alone."""
    return conversation(question, history, len(images_of(image))) if history else None


def _require_several(questions: object) -> None:
    if isinstance(questions, str):
        raise BadInput("questions is one text; expected a list of questions (look asks one)")
    if not isinstance(questions, abc.Sequence):
        raise BadInput(f"questions is {questions!r}; expected a list of questions")


def _jpeg_of_former_name(decode: JpegMode) -> JpegMode:
    warnings.warn("decode is jpeg now; the old name goes with the next version", DeprecationWarning, stacklevel=3)
    return decode


def _paths(given: str | os.PathLike[str] | abc.Sequence[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """One path, or several."""
    return tuple(map(Path, [given] if isinstance(given, (str, os.PathLike)) else given))


def _on_their_way(streams: Mapping[int, AnswerStream]) -> int:
    return sum(not stream.over for stream in streams.values())


def _finished(stream: AnswerStream) -> Answer | SdrpnError:
    try:
        return stream.finish()
    except SdrpnError as error:
        return error
