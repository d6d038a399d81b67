"""Read an adapter as PEFT saves it: which tensors it replaces, and which it changes by a low-rank product.

Adapters that cannot be merged into the weights exactly are refused by name. Knows names and shapes; computes nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sdrpn.checkpoint.config_section import ConfigSection, read_config
from sdrpn.checkpoint.low_rank import LowRank
from sdrpn.checkpoint.source import Place
from sdrpn.checkpoint.tensor_shapes import Shapes
from sdrpn.checkpoint.tensors import TensorFolder
from sdrpn.errors import BadCheckpoint

__all__ = ["ADAPTER_CONFIG_NAME", "Adapter", "CanonicalNames", "adapter_weights", "read_adapter"]

ADAPTER_CONFIG_NAME = "adapter_config.json"
_WEIGHTS_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
# `lora_A.weight`, in older files with the adapter's name in between; the parameters of embeddings have no `weight`.
_LOW_RANK = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<kind>weight|bias))?"
)
_WRAPPER = re.compile(r"\.(?:modules_to_save(?:\.(?!weight$|bias$)[^.]+(?=\.))?|base_layer)(?=\.)")
# LoRA settings with which the change is not a product added to a matrix, or not to the matrix of the base.
_NOT_MERGEABLE = {
    "alora_invocation_tokens": "acts on some tokens only (aLoRA)",
    "arrow_config": "selects an adapter for every token (Arrow)",
    "kasa_config": "changes the base's own weights (KaSA)",
    "layer_replication": "repeats layers of its base",
    "lora_ga_config": "changes the base's own weights (LoRA-GA)",
    "megatron_config": "is for Megatron's layers",
    "monteclora_config": "draws its weights at random (MonteCLoRA)",
    "target_parameters": "changes parameters outside layers",
    "trainable_token_indices": "trains single rows of the embedding table",
    "use_bdlora": "has block-diagonal matrices (BD-LoRA)",
    "use_qalora": "averages its inputs in groups (QA-LoRA)",
    "velora_config": "compresses the activations of its training (VeLoRA)",
}
# These start from a decomposition of the base's weights and train on the residual; True, False and others do not.
_CHANGING_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_LONGEST_PATTERN = 200
_MOST_PATTERNS = 16  # regular expressions that are more than a name
_MOST_CHOICES = 3
_BASE_LAYER = ".base_layer."


class CanonicalNames(Protocol):
    """What a family calls its tensors in files that do not state a layout."""

    def canonical(self, file_name: str, *, where: str) -> str | None:
        """The canonical name; None for a part that is never computed. Raises BadCheckpoint for an unknown name."""


@dataclass(frozen=True)
class Adapter:
    """An adapter's tensors, by the canonical names of what they replace or change."""

    tensors: TensorFolder
    replaced: Mapping[str, str] = field(default_factory=dict)  # canonical name -> name in the file
    changes: Mapping[str, LowRank] = field(default_factory=dict)

    def applied_to(self, places: Mapping[str, Place]) -> dict[str, Place]:
        """The places with the changes added."""
        return {
            name: dataclasses.replace(place, adapter=self.tensors, change=self.changes[name])
            if name in self.changes
            else place
            for name, place in places.items()
        }


def adapter_weights(folder: Path) -> Path | None:
    """The file with the tensors of an adapter, if the folder has one."""
    return next((folder / name for name in _WEIGHTS_NAMES if (folder / name).is_file()), None)


def read_adapter(folder: Path, shapes: Shapes, names: CanonicalNames) -> Adapter:
    """Read the adapter in `folder`.

    Args:
        shapes: the shapes of the model's tensors, by canonical name
        names: what adapters of its family call them
    Raises BadCheckpoint for what is missing, malformed, not LoRA, or cannot be merged.
    """
    config = read_config(folder / ADAPTER_CONFIG_NAME)
    _require_mergeable(config)
    weights = adapter_weights(folder)
    if weights is None:
        raise BadCheckpoint(
            f"{folder} has {ADAPTER_CONFIG_NAME} and none of {' or '.join(_WEIGHTS_NAMES)}; download it too"
        )
    return _Reader(config, TensorFolder((weights,)), weights, names, shapes).read()


def _require_mergeable(config: ConfigSection) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise BadCheckpoint(
            f"{config.where}: peft_type is {json.dumps(kind)}, which is not merged here; expected LORA: merge it with "
            f"PEFT's merge_and_unload where it can, and export the result"
        )
    for key, meaning in _NOT_MERGEABLE.items():
        if config.get(key):
            raise BadCheckpoint(
                f"{config.where}: {key} is set: this adapter {meaning}, and cannot be merged into its base; expected "
                f"LoRA, rank-stabilised LoRA or DoRA"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGING_STARTS):
        raise BadCheckpoint(
            f"{config.where}: init_lora_weights is {json.dumps(start)}, which changes the base's own weights; save the "
            f"adapter converted to LoRA (PEFT: path_initial_model_for_weight_conversion), or merged"
        )


class _Reader:
    """One pass over an adapter's tensors."""

    def __init__(
        self, config: ConfigSection, tensors: TensorFolder, weights: Path, table: CanonicalNames, shapes: Shapes
    ) -> None:
        self.config, self.tensors, self.weights, self.table, self.shapes = config, tensors, weights, table, shapes
        self.scalings = _Scalings(config)
        self.replaced: dict[str, str] = {}
        self.modules: dict[str, dict[str, str]] = {}  # module -> part of a low-rank change -> name in the file

    def read(self) -> Adapter:
        for name in sorted(self.tensors.names):
            self._sort(name)
        changes = dict(change for module, parts in self.modules.items() for change in self._changes(module, parts))
        for canonical in sorted(changes.keys() & self.replaced.keys()):
            name = self.replaced[canonical]
            if _BASE_LAYER not in name:  # PEFT also saves adapted embeddings and heads whole
                raise BadCheckpoint(f"{self.weights} both replaces and changes {name}; expected one of them")
        return Adapter(self.tensors, self.replaced, changes)

    def _sort(self, name: str) -> None:
        found = _LOW_RANK.fullmatch(name)
        if found is not None:
            part = found["part"] + (".bias" if found["kind"] == "bias" else "")
            self.modules.setdefault(found["module"], {})[part] = name
            return
        canonical = self.table.canonical(_WRAPPER.sub("", name), where=str(self.weights))
        if canonical is not None:
            self.replaced[canonical] = name

    def _changes(self, module: str, parts: Mapping[str, str]) -> Iterator[tuple[str, LowRank]]:
        """The changes of a module's weight and bias; none where the model does not use it."""
        canonical = self.table.canonical(f"{_WRAPPER.sub('', module + '.')}weight", where=str(self.weights))
        if canonical is None:
            return
        is_embedding = "embedding_A" in parts or "embedding_B" in parts
        down, up = ("embedding_A", "embedding_B") if is_embedding else ("A", "B")
        for part in (down, up):
            if part not in parts:
                raise BadCheckpoint(f"{self.weights} has no lora_{part} for {module}; expected both; download it again")
        rank = self._rank(module, parts[down])
        scaling = self.scalings.of(_path(module), rank)
        change = LowRank(parts[down], parts[up], scaling, parts.get("magnitude_vector"), is_embedding)
        self._require_shapes(change, canonical, rank)
        yield canonical, change
        if "B.bias" in parts:
            bias = canonical.removesuffix("weight") + "bias"
            if bias not in self.shapes:
                raise BadCheckpoint(f"{parts['B.bias']} of {self.weights} has no bias in the model to be merged into")
            yield bias, LowRank(None, parts["B.bias"], scaling)

    def _rank(self, module: str, down: str) -> int:
        shape = self.tensors.shape(down)
        if len(shape) < 2 or 0 in shape:
            raise BadCheckpoint(f"{down} of {self.weights} has the shape {list(shape)}; expected (rank, inputs)")
        return shape[0]

    def _require_shapes(self, change: LowRank, canonical: str, rank: int) -> None:
        if change.is_embedding and change.magnitude is not None:
            raise BadCheckpoint(
                f"{change.magnitude} of {self.weights}: DoRA of an embedding table is not merged here; use PEFT"
            )
        wanted = self.shapes[canonical]
        out, inputs = wanted[0], math.prod(wanted[1:])
        if change.is_embedding:
            out, inputs = wanted[1], wanted[0]
        expected: dict[str | None, tuple[int, ...]] = {
            change.down: (rank, inputs),
            change.up: (out, rank),
            change.magnitude: (out,),
        }
        for name in change.names:
            found = self.tensors.shape(name)
            flat = (math.prod(found),) if name == change.magnitude else (found[0], math.prod(found[1:]))
            if not found or flat != expected[name]:
                raise BadCheckpoint(
                    f"{name} of {self.weights} has the shape {list(found)}; expected {list(expected[name])}: "
                    f"the adapter is for another base"
                )


def _path(module: str) -> str:
    """The path of a module within the base model, which the patterns of the config match."""
    return module.removeprefix("base_model.model.")


class _Scalings:
    """The scale of each module's product: alpha / r, or alpha / sqrt(r) (Kalajdzievski 2023)."""

    def __init__(self, config: ConfigSection) -> None:
        self._config = config
        self._root = config.flag("use_rslora")
        self._rank, self._alpha = config.whole("r", 8), config.number("lora_alpha", 8.0)
        self._ranks, self._alphas = _patterns(config, "rank_pattern"), _patterns(config, "alpha_pattern")

    def of(self, path: str, stored_rank: int) -> float:
        """The scale for the module at `path`. Raises BadCheckpoint where config and file differ in the rank."""
        rank = _first_match(self._ranks, path, float(self._rank))
        if rank != stored_rank:
            raise BadCheckpoint(
                f"{self._config.where} gives {path} the rank {rank:g}; its tensors have {stored_rank}: config and "
                f"weights do not belong together"
            )
        alpha = _first_match(self._alphas, path, self._alpha)
        if not math.isfinite(alpha):
            raise BadCheckpoint(f"{self._config.where}: lora_alpha of {path} is {alpha}; expected a finite number")
        return float(alpha / rank**0.5 if self._root else alpha / rank)


def _patterns(config: ConfigSection, key: str) -> list[tuple[re.Pattern[str], float]]:
    """Suffixes of module paths, or regular expressions for them, in the order of the file."""
    section = config.section(key)
    if sum(_choices(text) > 0 for text in section.values) > _MOST_PATTERNS:
        raise BadCheckpoint(
            f"{section.where} has more than {_MOST_PATTERNS} regular expressions; expected module names"
        )
    return [(_pattern(section, text), section.number(text, 0.0)) for text in section.values]


def _choices(text: str) -> int:
    """Places where a regular expression can match in several ways; a run of digits has only one."""
    return len(re.findall(r"[*+?{(]", re.sub(r"(?:\\d|\[0-9\])[+*]", "", text)))


def _pattern(section: ConfigSection, text: str) -> re.Pattern[str]:
    # Each choice multiplies the time of a failing match: a few of them are enough to run for hours.
    if len(text) > _LONGEST_PATTERN or _choices(text) > _MOST_CHOICES or re.search(r"\)[*+?{]", text):
        raise BadCheckpoint(
            f"{section.where}: {text[:60]!r} is too long or has too many groups and repetitions; expected the name "
            f"of a module"
        )
    try:
        return re.compile(rf"(?:.*\.)?(?:{text})")
    except (re.error, OverflowError, RecursionError) as error:
        raise BadCheckpoint(f"{section.where}: {text!r} is not a regular expression ({error})") from error


def _first_match(patterns: list[tuple[re.Pattern[str], float]], path: str, default: float) -> float:
    return next((value for pattern, value in patterns if pattern.fullmatch(path)), default)
