"""A checkpoint under canonical names, whatever its family, layout and files. NumPy only.

Opening reads configs and headers and checks every tensor that the model needs; weights are read on demand. Which
layouts there are, and what their configs say, its family knows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from numpy.typing import NDArray

from sdrpn.checkpoint.adapter import Adapter
from sdrpn.checkpoint.config_section import read_config
from sdrpn.checkpoint.finite import count_not_finite
from sdrpn.checkpoint.model_file import require_links
from sdrpn.checkpoint.request import CheckpointRequest, has_tokenizer, require_tokenizer_files
from sdrpn.checkpoint.source import Place, Source, Sources, TensorHints, place_tensors
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.families.family import Family
from sdrpn.families.registry import claiming_family, family_of, load_part, usual_family
from sdrpn.host.hub import model_folder
from sdrpn.host.links import AllowLinks
from sdrpn.host.progress import Grown, uncounted
from sdrpn.method.geometry import Fit
from sdrpn.method.policy import ModelPolicy
from sdrpn.method.spec import AskedScheme, ModelSpec

__all__ = ["Checkpoint", "open_checkpoint"]

_PIECE_BYTES = 8 * 1024 * 1024


class Checkpoint:
    """Tensors and description of a model; made by `open_checkpoint`, used as a context manager."""

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        layout: str,
        sources: Sources,
        configs: tuple[Path, ...],
        *,
        adapter: Adapter | None = None,
        hints: TensorHints | None = None,
        notes: Sequence[str] = (),
        pictures: str = "",
        rpn_trained: bool = True,
        policy: ModelPolicy | None = None,
    ) -> None:
        """Find and check every tensor that the spec needs. Raises BadCheckpoint.

        Args:
            layout: its name, for people
            configs: the files that the spec was read from
            adapter: changes tensors as they are read
            hints: what errors about tensors say besides what is wrong
            notes: for the user
            pictures: how pictures become squares, as a note for the user
            policy: by what the model looks again; None: as its family does
        """
        # Whether the RPN's weights came out of a training; False where there is none.
        self.rpn_trained = rpn_trained and spec.rpn is not None
        self.path = path
        self.spec = spec
        self.policy = policy or ModelPolicy(family_of(spec).policy(spec), "official")  # by what it looks again
        self.pictures = pictures
        self.layout = layout
        self._sources = sources
        self._configs = configs
        self.notes = (*_notes(spec), *notes)
        places = place_tensors(spec, sources, hints or TensorHints())
        self._places = places if adapter is None else adapter.applied_to(places)
        self._digest: str | None = None
        self._finite: set[str] = set()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for source in self._all_sources():
            source.tensors.close()

    @property
    def names(self) -> frozenset[str]:
        """The canonical names of all tensors that the spec needs."""
        return frozenset(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a canonical tensor. Raises KeyError for a name outside `names`."""
        place = self._places[name]
        return place.source.tensors.shape(place.file_name)

    def read(self, name: str) -> NDArray[Any]:
        """The tensor as it is stored (float64, float32, float16 or ml_dtypes.bfloat16), read-only where it is mapped.

        Tensors that an adapter changes are computed at every call, in float32 or float64. Raises KeyError for a name
        outside `names`.
        """
        place = self._places[name]
        array = place.read()
        if name not in self._finite:
            self._require_finite(name, place, array)
        return array

    def _require_finite(self, name: str, place: Place, array: NDArray[Any]) -> None:
        """Check each tensor once: a diverged training saves NaN without complaint."""
        count = count_not_finite(array)
        if count:
            raise BadCheckpoint(
                f"{place.file_name} of {place.source.path} holds {count} of {array.size} numbers that are NaN or "
                f"infinite; the file is damaged, or the training diverged: use an earlier checkpoint"
            )
        self._finite.add(name)

    @property
    def tokenizer_dir(self) -> Path | None:
        """The folder with the tokenizer's files, if any."""
        folders = (source.path for source in self._sources["llm"])
        return next((path for path in folders if has_tokenizer(path)), None)

    def digest(self, progress: Grown = uncounted) -> str:
        """SHA-256 as hex over all configs and weight files: names, sizes and contents, in a fixed order.

        `progress` gets the number of bytes of each piece that was read. The digest is cached.
        """
        if self._digest is None:
            self._digest = _digest(self._all_files(), progress)
        return self._digest

    def _all_sources(self) -> list[Source]:
        return list({id(source): source for sources in self._sources.values() for source in sources}.values())

    def _all_files(self) -> list[Path]:
        return [*self._configs, *(path for source in self._all_sources() for path in source.files)]


def open_checkpoint(
    path: Path | str,
    *,
    vision_tower: Path | None = None,
    rpn: Path | None = None,
    base: Path | None = None,
    projector: Path | None = None,
    allow_links: AllowLinks = (),
    fit: Fit = "pad",
    download: bool = False,
    template: str | None = None,
    scheme: AskedScheme = "auto",
) -> Checkpoint:
    """Open a checkpoint folder in any known layout and check that it has every tensor that the model needs.

    Args:
        vision_tower: a CLIP folder for a checkpoint in LLaVA's own layout. It describes the tower; its weights are used
            unless the checkpoint has weights of the tower itself, because those may be fine-tuned
        rpn: an RPN that sdrpn wrote (folder or .safetensors file); without it, `rpn.json` in the checkpoint's folder is
            used if it exists, else the RPN of the checkpoint itself
        base: another checkpoint of the same sizes that has what this one lacks: upper LLM layers, norm, head; or the
            model that a LoRA or a projector in `path` was trained on, which may be a language model alone
        projector: LLaVA's `mm_projector.bin`, or its folder, in place of the checkpoint's own projector
        allow_links: folders that links of the checkpoint may point to, besides its own folder and the blobs of its
            cache; True: any. Applies to all folders named here
        fit: how pictures become squares, overriding the checkpoint's processor: see `VisionSpec`
        path, base, vision_tower: a str may also name a model of Hugging Face's hub that is in the local cache
        download: fetch the files of such a model that the cache lacks
        template: the prompt template, overriding the checkpoint's own (`PromptSpec.template`)
        scheme: whose second pass the RPN is for; "auto": as config and tensor names say
    Raises BadCheckpoint for anything missing, malformed or not supported, BadInput for what does not go together.
    """
    folder = model_folder(path, download=download)
    request = CheckpointRequest(
        folder,
        vision_tower=None if vision_tower is None else model_folder(vision_tower, download=download),
        rpn=rpn,
        base=None if base is None else model_folder(base, download=download),
        projector=projector,
        allow_links=allow_links,
        fit=fit,
        template=template,
        scheme=scheme,
    )
    require_links(request.places, allow_links)
    require_tokenizer_files(folder, request.base)
    found = cast(Checkpoint, load_part(_family(request).checkpoint_opener)(request))
    if scheme != "auto" and found.spec.rpn is None:
        found.close()
        raise BadInput(
            f"{folder} has no region proposal network that the scheme {scheme} could be for; leave it out",
            options=("scheme", "rpn"),
        )
    return found


def _family(request: CheckpointRequest) -> Family:
    """The one that knows the config of the folder or of its base; what none knows, the usual one refuses by name."""
    for folder in (request.folder, request.base):
        if folder is not None and (folder / "config.json").is_file():
            family = claiming_family(read_config(folder / "config.json").values)
            if family is not None:
                return family
    return usual_family()


def _notes(spec: ModelSpec) -> list[str]:
    """Notes for the user on limits of the network itself."""
    scaling = spec.llm.rope_scaling
    if scaling is None or scaling.kind != "dynamic":
        return []
    return [
        f"rope scaling dynamic has no effect up to {scaling.original_context} tokens, and above depends on the length "
        f"of each request, which cached keys cannot follow: the context is limited to that"
    ]


def _digest(files: Iterable[Path], progress: Grown) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
                progress(len(piece))
    return digest.hexdigest()
