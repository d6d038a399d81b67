"""Answer questions with a bundle: NumPy, Pillow, tokenizers and one inference library, nothing else."""

from __future__ import annotations

from sdrpn.method.roi import RoiPolicy
from sdrpn.runtime.answer import Answer, Timings, TokenCounts, Trace
from sdrpn.runtime.backends.tensorrt import EngineOptions
from sdrpn.runtime.sampling import Sampling
from sdrpn.runtime.session import Session
from sdrpn.runtime.stream import AnswerStream, AsyncAnswerStream

__all__ = [
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "EngineOptions",
    "RoiPolicy",
    "Sampling",
    "Session",
    "Timings",
    "TokenCounts",
    "Trace",
]
