"""An answer as a stream of text pieces. Reads a sequence; does not know how it is computed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType

from tokenizers import Tokenizer

from sdrpn.errors import Cancelled, RunFailed
from sdrpn.runtime.answer import Answer
from sdrpn.runtime.scheduler import Scheduler
from sdrpn.runtime.sequence import Sequence
from sdrpn.text.prompt import TextStream, decode_text

__all__ = ["AnswerStream", "AsyncAnswerStream", "until"]

Ready = Callable[[], bool]


class AnswerStream:
    """An answer in progress: iterate over text pieces, or call `finish()`.

    A stream that is not read continues with others that are. As a context manager, it is closed at the end of the
    block, complete or not.
    """

    def __init__(self, scheduler: Scheduler, sequence: Sequence, tokenizer: Tokenizer | None) -> None:
        """Args: sequence: not submitted yet"""
        self._scheduler, self._sequence, self._tokenizer = scheduler, sequence, tokenizer
        self._lock = threading.Lock()
        self._read = 0  # tokens already returned
        self._broken = False  # whether an error was already raised
        self._answer: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, in whole characters; empty ones are left out."""
        for piece in self._pieces():
            if piece is None:
                self._work_until(self._has_next)
            else:
                yield piece

    def finish(self) -> Answer:
        """Run to the end and return the answer. Raises RunFailed if the answer cannot be completed any more."""
        self._work_until(lambda: self.over)
        return self._collect()

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises RunFailed while pieces are still to come."""
        if self._answer is None:
            raise RunFailed("the answer is not complete; iterate to the end or call finish()")
        return self._answer

    def close(self) -> None:
        """End the answer, from any thread; a complete answer is not changed."""
        if self._sequence.finish_reason is None:
            self._scheduler.cancel(self._sequence)

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """Nobody can read it any more. Takes no lock: this thread may hold one."""
        self._sequence.cancelled = True

    @property
    def over(self) -> bool:
        """Whether the answer is complete or failed."""
        return self._sequence.over or self._sequence.cancelled

    def submit(self) -> None:
        """Queue the sequence for a slot."""
        self._scheduler.submit(self._sequence)

    def begin(self) -> None:
        """Submit, and return when the sequence is prefilled. Raises the sequence's error."""
        self.submit()
        self._work_until(self._has_next)
        self._require_whole()

    def _pieces(self) -> Iterator[str | None]:
        """Pieces, and None before each wait for the next token."""
        pieces = TextStream(self._tokenizer) if self._tokenizer is not None else None
        while True:
            if not self._has_next():
                yield None
                continue
            token_id = self._taken()
            if token_id is None:
                break
            piece = pieces.push(token_id) if pieces is not None else ""
            if piece:
                yield piece
        last = pieces.finish() if pieces is not None else ""
        if last:
            yield last
        self._collect()

    def _has_next(self) -> bool:
        """Whether `_taken` need not wait."""
        return self.over or len(self._sequence.token_ids) > self._read

    def _taken(self) -> int | None:
        """The next token; None after the last one, or after an error was raised."""
        with self._lock:
            self._require_whole()
            if self._broken or self._read == len(self._sequence.token_ids):
                return None
            self._read += 1
            return self._sequence.token_ids[self._read - 1]

    def _work_until(self, ready: Ready) -> None:
        try:
            self._scheduler.work_until(ready)
        except BaseException:
            self._break_off()
            raise

    def _break_off(self) -> None:
        self._broken = True
        self._scheduler.cancel(self._sequence)

    def _require_whole(self) -> None:
        """Raise the sequence's error, once."""
        sequence = self._sequence
        if sequence.finish_reason is not None or self._broken or not self.over:
            return
        self._broken = True
        raise sequence.error or Cancelled("the answer was cancelled; ask again")

    def _collect(self) -> Answer:
        with self._lock:
            self._require_whole()
            if self._sequence.finish_reason is None:  # ended by an error that was already raised
                raise RunFailed("the answer was ended by an error and cannot be completed; ask again")
            self._read = len(self._sequence.token_ids)
            if self._answer is None:
                text = decode_text(self._tokenizer, self._sequence.token_ids) if self._tokenizer is not None else ""
                self._answer = self._sequence.answer(text)
            return self._answer


class AsyncAnswerStream:
    """The same for an event loop, without blocking it: `async for` pieces, or `await finish()`.

    It starts when it is first read. Cancelling the task that reads it ends the answer.
    """

    def __init__(self, scheduler: Scheduler, prepare: Callable[[], AnswerStream]) -> None:
        """Args: prepare: opens the picture; called in another thread"""
        self._scheduler, self._prepare = scheduler, prepare
        self._stream: AnswerStream | None = None

    async def __aiter__(self) -> AsyncIterator[str]:
        """Pieces of text, in whole characters; empty ones are left out."""
        stream = await self._begun()
        try:
            for piece in stream._pieces():
                if piece is None:
                    await self._until(stream._has_next)
                else:
                    yield piece
        finally:
            stream.close()

    async def finish(self) -> Answer:
        """Run to the end and return the answer."""
        stream = await self._begun()
        try:
            await self._until(lambda: stream.over)
            return stream._collect()
        finally:
            stream.close()

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises RunFailed while pieces are still to come."""
        if self._stream is None:
            raise RunFailed("the answer is not complete; iterate to the end or await finish()")
        return self._stream.answer

    async def _begun(self) -> AnswerStream:
        if self._stream is None:
            self._stream = await asyncio.to_thread(self._prepare)
            self._stream.submit()
        return self._stream

    async def _until(self, ready: Ready) -> None:
        await until(self._scheduler, ready)


async def until(scheduler: Scheduler, ready: Ready) -> None:
    """Wait in an event loop until `ready()` is true; a thread works meanwhile."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(_set, done)

    forget = scheduler.call_when(ready, wake)
    try:
        await done
    finally:
        forget()


def _set(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
