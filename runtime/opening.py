"""What a session is opened with: the bundle, the library that answers, graphs or engines. Loads none of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdrpn.bundle.bundle import Bundle, Variant, open_bundle
from sdrpn.bundle.graphs import Parts, graphs_of
from sdrpn.bundle.numerics import PRECISIONS
from sdrpn.bundle.optimized import OptimizedSet
from sdrpn.bundle.shipped import require_name
from sdrpn.bundle.work import cpu_weights_read
from sdrpn.errors import BadInput, SdrpnError
from sdrpn.host.atomic import require_writable_folder
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.links import AllowLinks
from sdrpn.release.installed import require_signed_bundle
from sdrpn.runtime.backends.info import BackendInfo, OpenOptions, require_compatible
from sdrpn.runtime.backends.registry import AUTOMATIC, BACKENDS
from sdrpn.runtime.backends.runner import Backend
from sdrpn.runtime.backends.tensorrt import EngineOptions
from sdrpn.runtime.engines.engine_set import EngineSet
from sdrpn.runtime.prefix_store import DEFAULT_PREFIX_BYTES
from sdrpn.runtime.select import Choice, choose_backend, choose_optimized, graph_variant

__all__ = ["Opening", "OpeningRequest", "RunOptions", "batch_of", "enough_memory", "prefix_bytes_of"]

# More gain little on a CPU: see benchmarks/batching.py.
DEFAULT_BATCH = 4
# As many as servers on the largest GPUs decode at once; more is a slip of the pen.
MOST_BATCH = 1024
_USUAL = EngineOptions()
# How engines run, and what the command line calls it.
_OF_ENGINES = {
    "cuda_graph": ("no_cuda_graph",),
    "runtime_cache_dir": ("runtime_cache",),
    "keep_runtime_cache": ("runtime_cache none",),
    "weights_on_device_bytes": (),
}
ACTIVATION_STEP = 16  # activations that kernels of OpenVINO round together, at least


@dataclass(frozen=True, kw_only=True)
class RunOptions(CheckedFields):
    """How and where a bundle runs, by the arguments of `Session.open`: what requests of several jobs have in common."""

    backend: str = AUTOMATIC
    threads: int | None = None
    variant: str | None = None
    target: str | None = None
    device: int | str | None = None
    engine_options: EngineOptions | None = None
    optimized: bool = True
    accurate: bool = False
    activation_block: int | None = None
    kv_cache: Literal["int8"] | None = None
    decode_copy: bool | None = None
    vision_type: Literal["bf16"] | None = None
    verify: bool = True
    require_signed: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_compatible(self)


@dataclass(frozen=True)
class OpeningRequest:
    """The arguments of `Session.open` that decide which files are loaded by which library."""

    bundle_dir: str | os.PathLike[str]
    run: RunOptions
    allow_links: AllowLinks = ()
    download: bool = False
    max_batch: int | None = None
    parts: Parts = "all"
    # Called where saved graphs do not fit, with the library that is to run them; why they do not fit still, or None.
    save_again: Callable[[Bundle, Variant, str], str | None] | None = None

    def choose(self) -> Opening:
        """Choose, and verify the files. Raises BadBundle, BadInput, EngineMismatch or MissingDependency."""
        require_name(self.bundle_dir)
        bundle = open_bundle(
            self.bundle_dir if isinstance(self.bundle_dir, str) else Path(self.bundle_dir),
            allow_links=self.allow_links,
            download=self.download,
        )
        if self.run.require_signed:
            require_signed_bundle(bundle.path, self.run.require_signed, large=self.run.verify)
        graphs_of(bundle.spec, self.parts)  # refuses what the model does not have
        device = self.run.device
        options = _engine_options(self.run.engine_options, None if isinstance(device, str) else device)
        _require_cache_folder(options.runtime_cache_dir)
        by_name = self.run.backend == AUTOMATIC and isinstance(device, str)  # a device with a name is one library's
        choice = choose_backend(
            bundle,
            next(name for name, info in BACKENDS.items() if "device_name" in info.takes)
            if by_name
            else self.run.backend,
            target=self.run.target,
            variant=self.run.variant,
            device=options.device,
            verify=self.run.verify,
            max_batch=self.max_batch,
            parts=self.parts,
        )
        self._require_taken(choice.info)
        if choice.info.runs == "graphs" and self.run.backend != AUTOMATIC:
            self._require_no_engine_options(choice.info)
        return self._graphs(bundle, choice, options) if choice.engines is None else self._engines(choice, options)

    def _require_taken(self, info: BackendInfo) -> None:
        """Raise BadInput for an option that the chosen library does not have."""
        block = self.run.activation_block
        others = ", ".join(name for name, other in BACKENDS.items() if "activation_block" in other.takes)
        if isinstance(self.run.device, int) and info.on == "cpu":
            on_gpu = " and ".join(name for name, other in BACKENDS.items() if other.on == "gpu")
            raise BadInput(
                f"{info.name} has no device {self.run.device}, which is the number of an NVIDIA GPU, as {on_gpu} use "
                "one; leave it out, or name another backend",
                options=("device", "backend"),
            )
        if isinstance(self.run.device, str) and "device_name" not in info.takes:
            raise BadInput(
                f"{info.name} has no device {self.run.device!r}, which is one of {others}; expected the number of a "
                "GPU",
                options=("device", "backend"),
            )
        if self.run.kv_cache is not None and "kv_cache" not in info.takes:
            raise BadInput(
                f"{info.name} holds caches as the graphs declare them; for 8 bits ask for the backend {others}, or "
                "export the bundle with them",
                options=("kv-cache",),
            )
        if self.run.decode_copy and "decode_copy" not in info.takes:
            raise BadInput(
                f"{info.name} reads the same matrices in prefills and in decode steps; leave decode_copy out, or ask "
                f"for the backend {others}",
                options=("decode-copy",),
            )
        if self.run.vision_type is not None and "vision_type" not in info.takes:
            raise BadInput(
                f"{info.name} computes the vision tower in the type of its graph; leave vision_type out, or ask for "
                f"the backend {others}",
                options=("vision-type",),
            )
        if block is None:
            return
        if not _is_whole(block, 0) or block % ACTIVATION_STEP != 0:
            raise BadInput(
                f"activation_block is {block!r}; expected 0, or a multiple of {ACTIVATION_STEP}",
                options=("activation_block",),
            )
        if "activation_block" not in info.takes:
            raise BadInput(
                f"{info.name} rounds activations in the blocks of the weights; leave their blocks out, or ask for the "
                f"backend {others}",
                options=("activation-block",),
            )

    def _require_no_engine_options(self, info: BackendInfo) -> None:
        """Raise BadInput for what says how engines run."""
        given = self.run.engine_options or _USUAL
        for name, options in _OF_ENGINES.items():
            value = getattr(given, name)
            if value != getattr(_USUAL, name):
                raise BadInput(
                    f"{name} is {value}, an option of engines, and {info.name} runs graphs; leave it out",
                    options=options,
                )

    def _require_rounding(self, variant: Variant) -> None:
        """Raise BadInput for blocks of activations that nothing would be rounded in."""
        block = self.run.activation_block
        if not block:  # 0: they stay floats, as they are
            return
        if PRECISIONS[variant.precision].bits != 4:
            raise BadInput(
                f"activation_block is {block}; {variant.name} has no matrices in 4 bits, beside which activations "
                "are rounded: leave it out",
                options=("activation-block",),
            )

    def _engines(self, choice: Choice, options: EngineOptions) -> Opening:
        found = choice.engines
        assert found is not None
        _require_batch(self.max_batch, found)
        opened = OpenOptions(engines=options, flavour=found.flavour, host_code=found.host_code, device=options.device)
        backend = choice.info.open(opened)
        self._verify(found.bundle, found.variant.embedding)
        files = {name: engine.path for name, engine in found.engines.items()}
        part = self._part(found.bundle, found.variant)
        return Opening(
            found.bundle,
            part,
            backend,
            files,
            contexts=found.contexts,
            engine_batch=found.max_batch,
            target=found.target,
        )

    def _graphs(self, bundle: Bundle, choice: Choice, options: EngineOptions) -> Opening:
        chosen = graph_variant(bundle, self.run.variant, info=choice.info, note=choice.note)
        self._require_rounding(chosen)
        saved, note = None, None
        if self.run.optimized and not self.run.accurate:
            saved, note = self._saved(bundle, chosen, choice.info)
        backend = choice.info.open(
            OpenOptions(
                self.run.threads,
                options.device,
                optimized=saved is not None,
                device_name=self.run.device if isinstance(self.run.device, str) else None,
                accurate=self.run.accurate,
                activation_block=self.run.activation_block,
                kv_cache=self.run.kv_cache,
                decode_copy=self.run.decode_copy,
                vision_type=self.run.vision_type,
                largest_matrix=bundle.spec.llm.largest_matrix,
            )
        )
        if saved is not None:
            self._verify(bundle, chosen.embedding)
            part = self._part(bundle, saved.variant(chosen))
            return Opening(
                bundle, part, backend, saved.graphs, choice.note, weights_read=saved.manifest.read_bytes or None
            )
        part = self._part(bundle, chosen)
        self._verify(bundle, *part.files)
        read = cpu_weights_read(bundle, part, choice.info.scale_bytes) if choice.info.on == "cpu" else None
        return Opening(bundle, part, backend, note=choice.note or note, weights_read=read)

    def _saved(self, bundle: Bundle, variant: Variant, info: BackendInfo) -> tuple[OptimizedSet | None, str | None]:
        """As `choose_optimized`, and they are saved again where that was asked for."""
        saved, note = choose_optimized(bundle, variant, info, self.run.verify)
        if note is None or self.save_again is None:
            return saved, note
        obstacle = self.save_again(bundle, variant, info.name)
        if obstacle is not None:
            return None, f"{note}; they could not be made again: {obstacle}"
        return choose_optimized(bundle, variant, info, self.run.verify)

    def _part(self, bundle: Bundle, variant: Variant) -> Variant:
        return variant.with_graphs(graph.name for graph in graphs_of(bundle.spec, self.parts))

    def _verify(self, bundle: Bundle, *files: str) -> None:
        tokenizer = (bundle.manifest.tokenizer,) if bundle.manifest.tokenizer else ()
        bundle.verify((*files, *tokenizer), large=self.run.verify)


@dataclass(frozen=True)
class Opening:
    """What was chosen; `engines` are files that the backend loads in place of the bundle's graphs."""

    bundle: Bundle
    variant: Variant
    backend: Backend
    engines: Mapping[str, Path] | None = None
    note: str | None = None
    contexts: tuple[int, ...] = ()  # the cache lengths that the engines have profiles for, where that is several
    engine_batch: int | None = (
        None  # the most sequences that a decode step of the engines takes; None: these are graphs
    )
    target: str | None = None  # of the engines
    weights_read: Mapping[str, int] | None = None  # graph -> bytes that a run reads, on a CPU; None: not known


def _require_cache_folder(folder: Path | None) -> None:
    """Raises BadInput for a place that no compiled kernels can be kept in, also where no engine will run."""
    if folder is None:
        return
    try:
        require_writable_folder(folder)
    except SdrpnError as error:
        raise type(error)(f"runtime_cache_dir: {error}", options=("runtime_cache",)) from error


def _require_batch(max_batch: int | None, engines: EngineSet) -> None:
    """Raises BadInput for more questions than a decode step of these engines takes."""
    most = engines.max_batch
    if max_batch is not None and max_batch > most:
        raise BadInput(
            f"max_batch is {max_batch}; the engines of {engines.target} decode at most {most} at once. Ask for at most "
            f"that, or build them again: {engines.build_command} --max-batch {max_batch}",
            options=("max_batch",),
        )


def batch_of(max_batch: int | None, backend: Backend, engine_batch: int | None) -> int:
    """How many questions are answered at once. Raises BadInput for a number that backend or engines cannot take."""
    most = backend.most_slots if engine_batch is None else engine_batch
    if max_batch is None:
        # On a GPU all slots are made with the first question: graphs answer several only where that is asked for.
        return engine_batch or (1 if backend.on == "gpu" else min(DEFAULT_BATCH, most or DEFAULT_BATCH))
    if not _is_whole(max_batch, 1) or max_batch > MOST_BATCH:
        raise BadInput(
            f"max_batch is {max_batch!r}; expected a number of questions, at least 1, at most {MOST_BATCH}",
            options=("max_batch",),
        )
    if most is not None and max_batch > most:
        raise BadInput(
            f"max_batch is {max_batch}; {backend.name} answers at most {most} at once", options=("max_batch",)
        )
    return max_batch


def prefix_bytes_of(prefix_bytes: int | None, backend: Backend) -> int:
    """The most memory for prefixes that are kept aside. Raises BadInput for a negative number."""
    if prefix_bytes is None:  # on a GPU all memory is planned for
        return DEFAULT_PREFIX_BYTES if backend.on == "cpu" else 0
    if not _is_whole(prefix_bytes, 0):
        raise BadInput(
            f"prefix_bytes is {prefix_bytes!r}; expected a number of bytes, 0 for none", options=("cache_bytes",)
        )
    return prefix_bytes


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def enough_memory(backend: Backend, size_bytes: int) -> bool:
    """Whether caches of this size leave as much memory again."""
    available = backend.free_memory()
    return available is None or 2 * size_bytes <= available


def _engine_options(options: EngineOptions | None, device: int | None) -> EngineOptions:
    """With the device that was asked for. Raises BadInput where two were."""
    if device is None or options is None:
        return options or EngineOptions(device=device or 0)
    if options.device not in (0, device):
        raise BadInput(f"device {device} was asked for, and {options.device} in the engine options; leave one out")
    return dataclasses.replace(options, device=device)
