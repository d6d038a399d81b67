"""Where this family's tensors lie in a folder, and what errors about them say."""

from __future__ import annotations

from pathlib import Path

from sdrpn.checkpoint.source import Source, Sources, TensorHints
from sdrpn.checkpoint.tensors import TensorFolder, weight_files
from sdrpn.errors import BadCheckpoint
from sdrpn.families.llava.names import clip_name, detect_layout, detect_vision_prefix
from sdrpn.families.llava.vision_spec import VisionSpec, clip_of
from sdrpn.method.spec import ModelSpec

__all__ = ["LlavaHints", "checkpoint_source", "require_whole_projector", "tower_source"]

_TOWER_PREFIXES = ("vision_model.", "")  # in a separate CLIP folder


def checkpoint_source(folder: Path, *, with_rpn: bool) -> Source:
    """A folder with a model's own weights. Raises BadCheckpoint where there are none, or their layout is unknown."""
    files = weight_files(folder)
    tensors = TensorFolder(files)
    layout = detect_layout(tensors.names, with_rpn=with_rpn, where=str(folder))
    prefix = detect_vision_prefix(tensors.names, layout.vision)
    return Source(
        folder,
        files,
        tensors,
        lambda name: layout.file_name(name, prefix),
        layout=layout.name,
        has_vision=prefix is not None,
    )


def tower_source(tower: Path) -> Source:
    """A folder with a vision tower alone."""
    files = weight_files(tower)
    tensors = TensorFolder(files)
    prefix = detect_vision_prefix(tensors.names, _TOWER_PREFIXES) or ""
    return Source(tower, files, tensors, lambda name: prefix + clip_name(name.removeprefix("vision.")))


class LlavaHints(TensorHints):
    """See `TensorHints`."""

    def __init__(self, vision: VisionSpec) -> None:
        self._vision = vision

    def wrong_shape(self, name: str) -> tuple[str, tuple[str, ...]]:
        """A tower in a folder of its own may be another one."""
        if name.startswith("vision.") or name == "projector.fc1.weight":
            return "is this the right vision tower? name another one", ("vision_tower",)
        return super().wrong_shape(name)

    def missing(self, name: str, file_name: str) -> str:
        """A projector of other layers."""
        if not name.startswith("projector.") or "mm_projector" not in file_name:
            return ""
        layers = self._vision.projector_layers
        return f"mm_projector_type of config.json is {'linear' if layers == 1 else f'mlp{layers}x_gelu'}"


def require_whole_projector(spec: ModelSpec, sources: Sources) -> None:
    """Raise BadCheckpoint for a projector of more layers than the config says: it would be computed in part."""
    layers = clip_of(spec).projector_layers
    source = next((source for source in sources["projector"] if source.has("projector.fc1.weight")), None)
    extra = f"projector.fc{layers + 1}.weight"
    if source is not None and source.is_whole and source.has(extra):
        raise BadCheckpoint(
            f"{source.path} holds {source.file_name(extra)}: its projector has more than the {layers} layers that "
            f"mm_projector_type of its config.json says; correct one of them"
        )
