"""llama.cpp from a folder of its compiled libraries, through ctypes.

llama-cpp-python has no wheel on PyPI and takes long to compile. The npm package @node-llama-cpp/linux-x64 has the
libraries of llama.cpp for every generation of x86-64, of which llama.cpp itself takes the best that runs here:

    npm pack @node-llama-cpp/linux-x64 && tar xzf node-llama-cpp-linux-x64-*.tgz
    LLAMA_CPP_LIBRARIES=package/bins/linux-x64 python benchmarks/other_runtimes.py ...

Parameters are passed as blocks of bytes larger than any release's, in which llama.h's first fields are set: those after
them, and their number, change from release to release.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

__all__ = ["VARIABLE", "LlamaLibrary", "LlamaModel", "named_folder"]

VARIABLE = "LLAMA_CPP_LIBRARIES"
_FILE_TYPES = {"q4_0": 2, "q8_0": 7}  # LLAMA_FTYPE_MOSTLY_*
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _Parameters(ctypes.Structure):
    """Passed and returned in memory, so that a larger block than the library's own serves as well."""

    _fields_ = (("words", ctypes.c_uint32 * 256),)


class _Batch(ctypes.Structure):
    _fields_ = (("n_tokens", ctypes.c_int32), *((name, ctypes.c_void_p) for name in ("a", "b", "c", "d", "e", "f")))


class LlamaLibrary:
    """The loaded libraries. Raises OSError where the folder has none that load.

    Their names stay their own: OpenVINO GenAI has functions of the same names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for pattern in ("libggml-base*.so*", "libggml.*so*"):
            ggml = ctypes.CDLL(str(_only(folder, pattern)))
        self._llama = ctypes.CDLL(str(_only(folder, "libllama.*so*")))
        self._silent = _LOG(lambda level, text, data: None)
        self.function("llama_log_set", None, _LOG, ctypes.c_void_p)(self._silent, None)
        load = ggml.ggml_backend_load_all_from_path
        load.argtypes, load.restype = [ctypes.c_char_p], None
        load(str(folder).encode())
        self.function("llama_backend_init", None)()

    def function(self, name: str, result: Any, *arguments: Any) -> Any:
        """A function of llama.h with these types."""
        found = getattr(self._llama, name)
        found.restype, found.argtypes = result, list(arguments)
        return found

    @cached_property
    def cpu(self) -> str:
        """What its kernels use of this CPU, in llama.cpp's words."""
        text: bytes = self.function("llama_print_system_info", ctypes.c_char_p)()
        return text.decode()

    def quantize(self, source: Path, target: Path, kind: str) -> None:
        """Write a GGUF in another type, "q4_0" or "q8_0". Raises RuntimeError where it cannot."""
        parameters = self.function("llama_model_quantize_default_params", _Parameters)()
        parameters.words[1] = _FILE_TYPES[kind]  # behind nthread
        quantize = self.function(
            "llama_model_quantize", ctypes.c_uint32, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p
        )
        code = quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
        if code != 0:
            raise RuntimeError(f"llama_model_quantize returned {code}")


class LlamaModel:
    """A model with one context. Raises RuntimeError where llama.cpp refuses it."""

    def __init__(self, library: LlamaLibrary, gguf: Path, threads: int, context: int) -> None:
        pointer = ctypes.c_void_p
        parameters = library.function("llama_model_default_params", _Parameters)()
        load = library.function("llama_model_load_from_file", pointer, ctypes.c_char_p, _Parameters)
        self._model = _found(load(str(gguf).encode(), parameters), f"{gguf} as a model")
        parameters = library.function("llama_context_default_params", _Parameters)()
        parameters.words[0] = parameters.words[1] = context  # n_ctx, n_batch
        create = library.function("llama_init_from_model", pointer, pointer, _Parameters)
        self._context = _found(create(self._model, parameters), "a context")
        library.function("llama_set_n_threads", None, pointer, ctypes.c_int32, ctypes.c_int32)(
            self._context, threads, threads
        )
        self._decode = library.function("llama_decode", ctypes.c_int32, pointer, _Batch)
        self._batch = library.function("llama_batch_get_one", _Batch, pointer, ctypes.c_int32)
        self._memory = library.function("llama_get_memory", pointer, pointer)(self._context)
        self._clear = library.function("llama_memory_clear", None, pointer, ctypes.c_bool)

    def clear(self) -> None:
        """Forget all tokens."""
        self._clear(self._memory, True)

    def run(self, ids: Sequence[int]) -> None:
        """Compute tokens behind those before."""
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        code = self._decode(self._context, self._batch(ctypes.cast(tokens, ctypes.c_void_p), len(ids)))
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")


def named_folder() -> Path | None:
    """The folder that the environment names."""
    value = os.environ.get(VARIABLE)
    return Path(value) if value else None


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise OSError(f"{folder} has no {pattern}; expected llama.cpp's libraries, as benchmarks/llama_library.py says")
    return found[0]


def _found(pointer: int | None, what: str) -> int:
    if not pointer:
        raise RuntimeError(f"llama.cpp does not take {what}")
    return pointer
