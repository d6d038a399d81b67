"""Answer questions with a bundle: NumPy, Pillow, tokenizers and one inference library, nothing else.

Each name is imported when it is first used: code that only looks at backends loads neither pictures nor tokenizers.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it
if TYPE_CHECKING:
    from sdrpn.method.policy import RoiChange
    from sdrpn.method.roi import RoiPolicy
    from sdrpn.runtime.answer import Answer, Timings, TokenCounts, Trace
    from sdrpn.runtime.backends.tensorrt import EngineOptions
    from sdrpn.runtime.look import Look
    from sdrpn.runtime.regions import DroppedRegion, Region
    from sdrpn.runtime.sampling import Sampling
    from sdrpn.runtime.session import Session
    from sdrpn.runtime.stream import AnswerStream, AsyncAnswerStream

__all__ = [
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "DroppedRegion",
    "EngineOptions",
    "Look",
    "Region",
    "RoiChange",
    "RoiPolicy",
    "Sampling",
    "Session",
    "Timings",
    "TokenCounts",
    "Trace",
]

_HOMES = {
    "AnswerStream": "sdrpn.runtime.stream",
    "AsyncAnswerStream": "sdrpn.runtime.stream",
    "DroppedRegion": "sdrpn.runtime.regions",
    "EngineOptions": "sdrpn.runtime.backends.tensorrt",
    "Look": "sdrpn.runtime.look",
    "Region": "sdrpn.runtime.regions",
    "RoiChange": "sdrpn.method.policy",
    "RoiPolicy": "sdrpn.method.roi",
    "Sampling": "sdrpn.runtime.sampling",
    "Session": "sdrpn.runtime.session",
}

if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        """Import a name of `__all__`, once."""
        from importlib import import_module

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES.get(name, "sdrpn.runtime.answer")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
