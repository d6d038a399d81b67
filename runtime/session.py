"""A bundle, opened for questions: image and text in, answer out."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from sdrpn.bundle.bundle import Bundle, Variant, open_bundle
from sdrpn.errors import BadInput, RunFailed
from sdrpn.host.interrupt import SignalWatch
from sdrpn.host.links import AllowLinks
from sdrpn.method.roi import Decide, RoiPolicy, decide_by_policy
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime.answer import Answer, Stopwatch
from sdrpn.runtime.backends import open_backend, open_tensorrt
from sdrpn.runtime.backends.runner import Backend, Runner
from sdrpn.runtime.backends.tensorrt import EngineOptions
from sdrpn.runtime.decoder import Decoder
from sdrpn.runtime.embedding import TokenEmbedding
from sdrpn.runtime.pictures.picture import Decode, PictureSource, open_picture
from sdrpn.runtime.sampling import GREEDY, Sampling
from sdrpn.runtime.select import AUTOMATIC, choose_backend, choose_optimized, onnxruntime_variant
from sdrpn.runtime.sequence import Request, Sequence
from sdrpn.runtime.turns import Turn, Turns
from sdrpn.runtime.two_pass import TwoPass
from sdrpn.text.prompt import TextStream, build_prompt, decode_text, load_tokenizer

__all__ = ["AnswerStream", "Session"]

DEFAULT_POLICY = RoiPolicy()
# A reader that waits for its network goes on within seconds; one that does not has left.
STREAM_IDLE_S = 10.0


class Session:
    """Answers one question at a time; remembers the last image, so that more questions about it cost less.

    Several threads may share one: whoever asks waits until the answer before is complete. A stream that is not read to
    its end keeps the others waiting for at most `stream_idle_s` behind its last token; then it has lost its turn and
    raises RunFailed where it is read on. The thread that read it last does not wait: its next question takes the
    turn at once. `close` of a stream gives the turn back without a wait.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        backend: Backend,
        engines: Mapping[str, Path] | None = None,
        note: str | None = None,
        *,
        decode: Decode = "exact",
        threads: int | None = None,
        contexts: abc.Sequence[int] = (),
        stream_idle_s: float = STREAM_IDLE_S,
    ) -> None:
        """Load the variant's graphs. `Session.open` is the usual way in.

        Args:
            engines: files that the backend loads in place of the bundle's graphs, by graph
            note: the first part of `backend_note`
            decode, threads: of pictures, as in `open`
            contexts: the cache lengths that the engines have profiles for, where that is more than one
            stream_idle_s: how long a stream that is not read on keeps other threads waiting
        """
        self.bundle, self.variant = bundle, variant
        self.backend, self._library, self._note = backend.name, backend, note
        self._decode_mode, self._threads = decode, threads
        self._turns = Turns(stream_idle_s)
        self._cancellation = backend.cancellation
        self._watch = SignalWatch(self._cancellation.cancel, self._cancellation.reset)
        spec, tokenizer = bundle.spec, bundle.manifest.tokenizer
        # Before the graphs, which may take a minute to load.
        self._tokenizer = load_tokenizer(bundle.file(tokenizer)) if tokenizer is not None else None
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
            self._decoder = Decoder(backend, runners, spec.llm.width, spec.llm.vocabulary, contexts)
            resources.callback(self._decoder.close)
            context = min(bundle.manifest.max_context, self._decoder.slots.max_rows or bundle.manifest.max_context)
            self._two_pass = TwoPass(spec, context, backend, vision, self._decoder, self._embedding)
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
        verify: bool = True,
        decode: Decode = "exact",
        allow_links: AllowLinks = (),
        download: bool = False,
    ) -> Session:
        """Open a bundle.

        Args:
            bundle_dir: a folder as `sdrpn export` writes it; the text "default" is the shipped one, and
                "ORGANISATION/MODEL" one of Hugging Face's hub that is in the local cache
            backend: "onnxruntime" (CPU), "onnxruntime-cuda", "tensorrt" (the engines of `sdrpn build`), or "auto":
                engines where some fit this machine's GPU, else "onnxruntime"
            threads: for the CPU; None: one per core
            variant: such as "primitive-fp16"; None: that of the engines, or the one that suits the library best
            target: whose engines are run; None: the first that fit
            device: which GPU, as CUDA numbers them; None: that of the engine options, which is the first
            engine_options: how engines are run
            optimized: on a CPU, take the graphs of `sdrpn optimize` where some fit this machine
            verify: False skips the digests of large files (sizes are always compared)
            decode: "fast" takes the first look at a JPEG file from DCT scaling: quicker, not exact; "gpu" decodes JPEG
                files with nvImageCodec
            allow_links: folders that links of the bundle may lead to, besides itself and its cache's blobs; True: any
            download: fetch what the local cache lacks of a model of Hugging Face's hub
        Raises: BadBundle, BadInput, EngineMismatch or MissingDependency before any graph is loaded.
        """
        bundle = open_bundle(
            bundle_dir if isinstance(bundle_dir, str) else Path(bundle_dir), allow_links=allow_links, download=download
        )
        options = _engine_options(engine_options, device)
        choice = choose_backend(bundle, backend, target=target, variant=variant, device=options.device, verify=verify)
        tokenizer = (bundle.manifest.tokenizer,) if bundle.manifest.tokenizer else ()
        if choice.engines is not None:
            chosen, engines = choice.engines.variant, choice.engines.engines
            gpu = open_tensorrt(choice.engines.flavour, options, host_code=choice.engines.host_code)
            bundle.verify((chosen.embedding, *tokenizer), large=verify)
            files = {name: one.path for name, one in engines.items()}
            contexts = choice.engines.contexts
            return cls(bundle, chosen, gpu, files, decode=decode, threads=threads, contexts=contexts)
        chosen = onnxruntime_variant(bundle, variant, choice.note, choice.backend)
        saved, note = choose_optimized(bundle, chosen, choice.backend, verify) if optimized else (None, None)
        library = open_backend(choice.backend, threads, optimized=saved is not None, device=options.device)
        if saved is not None:
            bundle.verify((chosen.embedding, *tokenizer), large=verify)
            return cls(
                bundle, saved.variant(chosen), library, saved.graphs, choice.note, decode=decode, threads=threads
            )
        bundle.verify((*chosen.files, *tokenizer), large=verify)
        return cls(bundle, chosen, library, note=choice.note or note, decode=decode, threads=threads)

    @property
    def backend_note(self) -> str | None:
        """Why what answers is not the best that is there, or not as fast as it could be; None: nothing is known."""
        notes = [note for note in (self._note, self._library.note) if note is not None]
        return "; ".join(notes) or None

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.bundle.spec

    def answer(
        self,
        image: PictureSource,
        question: str,
        *,
        roi: RoiPolicy | None = DEFAULT_POLICY,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        trace: bool = False,
    ) -> Answer:
        """Answer a question about an image.

        Args:
            image: a path, the bytes of a picture file, a PIL image, an (H, W, 3) uint8 array, or a Picture
            question: text; a bundle without a tokenizer needs `answer_ids`
            roi: how the RoI map becomes crops; None: plain LLaVA
            max_new_tokens: at most so many
            sampling: greedy by default
            trace: keep intermediate results
        Raises: BadInput and its kin for a bad request, RunFailed where a graph failed.
        """
        return self.stream(
            image, question, roi=roi, max_new_tokens=max_new_tokens, sampling=sampling, trace=trace
        ).finish()

    def stream(
        self,
        image: PictureSource,
        question: str,
        *,
        roi: RoiPolicy | None = DEFAULT_POLICY,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        trace: bool = False,
    ) -> AnswerStream:
        """As `answer`, but an iterator of text pieces; its `answer` is there after the last one."""
        if self._tokenizer is None:
            raise BadInput(
                f"{self.bundle.path} has no tokenizer.json, so it answers by token ids only: put tokenizer.json or "
                f"tokenizer.model beside the checkpoint and export it again, or call answer_ids"
            )
        prompt = build_prompt(self._tokenizer, self.spec.prompt, question)
        return self._start(
            image, prompt.ids_before, prompt.ids_after, self._decide(roi), max_new_tokens, sampling, (), trace
        )

    def answer_ids(
        self,
        image: PictureSource,
        ids_before_image: abc.Sequence[int],
        ids_after_image: abc.Sequence[int],
        *,
        roi: RoiPolicy | None = DEFAULT_POLICY,
        decide: Decide | None = None,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        stop_ids: abc.Sequence[int] = (),
        trace: bool = False,
    ) -> Answer:
        """As `answer`, with the prompt as token ids, BOS included.

        Args:
            decide: chooses the crops in place of `roi`, from the RoI logits and the image's size
            stop_ids: end the answer beside the model's own stop tokens
        """
        chosen = decide if decide is not None else self._decide(roi)
        before, after = tuple(ids_before_image), tuple(ids_after_image)
        return self._start(image, before, after, chosen, max_new_tokens, sampling, tuple(stop_ids), trace).finish()

    def forget_image(self) -> None:
        """Compute everything of the next question anew, also where it is about the same image: for fair timing."""
        for slot in self._decoder.slots.all:
            slot.prefix = None

    def cancel(self) -> None:
        """End the answer that is being made, in whichever thread: it raises Cancelled there.

        A graph that runs ends within a fraction of a second. Questions that wait for their turn go on to be answered.
        """
        if self._turns.cancel():
            self._cancellation.cancel()

    def close(self) -> None:
        """Wait for the step that another thread makes, then free graphs and caches; calling it twice does no harm.

        An answer that is not complete raises RunFailed where it goes on; `cancel` before `close` saves the wait.
        """
        self._turns.close()
        self._resources.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decide(self, roi: RoiPolicy | None) -> Decide | None:
        return decide_by_policy(roi, self.spec.vision.grid) if roi is not None else None

    def _start(
        self,
        image: PictureSource,
        before: tuple[int, ...],
        after: tuple[int, ...],
        decide: Decide | None,
        max_new_tokens: int,
        sampling: Sampling,
        stop_ids: tuple[int, ...],
        trace: bool,
    ) -> AnswerStream:
        self._turns.require_open()
        watch = Stopwatch()
        with watch.stage("preprocess"):
            picture = open_picture(image, decode=self._decode_mode, threads=self._threads)
        request = Request(picture, before, after, decide, max_new_tokens)
        sequence = Sequence(request, watch, sampling, (*self.spec.prompt.eos_token_ids, *stop_ids), keep_trace=trace)
        turn = self._turns.begin()
        self._cancellation.reset()
        try:
            with turn.step(), self._watch:
                sequence.choose(self._two_pass.prefill(sequence, self._decoder.slots.all[0]))
            return AnswerStream(self, turn, sequence)
        except BaseException:
            turn.end()
            raise

    def _text(self, token_ids: abc.Sequence[int]) -> str:
        return decode_text(self._tokenizer, token_ids) if self._tokenizer is not None else ""


class AnswerStream:
    """An answer on its way: iterate for text pieces, or `finish()` at once.

    As a context manager it gives its turn back at the end of the block, complete or not.
    """

    def __init__(self, session: Session, turn: Turn, sequence: Sequence) -> None:
        self._session, self._turn, self._sequence = session, turn, sequence
        self._read = 0  # tokens that were given away
        self._broken = False
        self._answer: Answer | None = None
        if sequence.finish_reason is not None:
            turn.end()

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, in whole characters; empty ones are left out."""
        tokenizer = self._session._tokenizer
        pieces = TextStream(tokenizer) if tokenizer is not None else None
        while (token_id := self._next_token()) is not None:
            piece = pieces.push(token_id) if pieces is not None else ""
            if piece:
                yield piece
        last = pieces.finish() if pieces is not None else ""
        if last:
            yield last
        self._answer = self._answer or self._collect()

    def finish(self) -> Answer:
        """Run to the end and return the answer. Raises RunFailed where that cannot be reached any more."""
        if self._sequence.finish_reason is None and not self._broken:
            with self._step():  # one for all: each costs some microseconds
                while self._sequence.finish_reason is None:
                    self._advance()
        self._read = len(self._sequence.token_ids)
        self._answer = self._answer or self._collect()
        return self._answer

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises RunFailed while pieces are still to come."""
        if self._answer is None:
            raise RunFailed("the answer is not complete; iterate to the end or call finish()")
        return self._answer

    def close(self) -> None:
        """End the answer here, from any thread, and give its turn back; nothing happens to one that is complete."""
        if self._sequence.finish_reason is not None:
            return
        if self._session._turns.cancel(self._turn):
            self._session._cancellation.cancel()
        else:
            self._turn.cancelled = True
            self._turn.end()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """Nobody can read on."""
        self._turn.end()

    def _next_token(self) -> int | None:
        """None behind the last one."""
        sequence = self._sequence
        if self._read == len(sequence.token_ids) and sequence.finish_reason is None and not self._broken:
            with self._step():
                self._advance()
        if self._read == len(sequence.token_ids):
            return None
        self._read += 1
        return sequence.token_ids[self._read - 1]

    @contextmanager
    def _step(self) -> Iterator[None]:
        """A step of the session's turn, which ends with the answer, be it complete or broken off."""
        try:
            with self._turn.step(), self._session._watch:
                yield
        except BaseException:
            self._broken = True
            raise
        finally:
            if self._broken or self._sequence.finish_reason is not None:
                self._turn.end()

    def _advance(self) -> None:
        """Another token; the last one is never computed further."""
        sequence, session = self._sequence, self._session
        self._turn.require_uncancelled()
        assert sequence.slot is not None
        with sequence.watch.decode_step():
            embedding = session._embedding.rows([sequence.token_ids[-1]])
            logits = session._decoder.step_one(sequence.slot, embedding, sequence.position)
        sequence.position += 1
        sequence.choose(logits)

    def _collect(self) -> Answer:
        if self._sequence.finish_reason is None:  # a failure ended the tokens, and was reported then
            raise RunFailed("the answer was broken off by an error and cannot be completed; ask again")
        return self._sequence.answer(self._session._text(self._sequence.token_ids))


def _engine_options(options: EngineOptions | None, device: int | None) -> EngineOptions:
    """With the device that was asked for. Raises BadInput where two were."""
    if device is None or options is None:
        return options or EngineOptions(device=device or 0)
    if options.device not in (0, device):
        raise BadInput(f"device {device} was asked for, and {options.device} in the engine options; leave one out")
    return dataclasses.replace(options, device=device)
