"""Convert SentencePiece's `tokenizer.model` for the `tokenizers` library, or refuse.

transformers 5 converts `tokenizer.model` too, but orders merges by id instead of by score and drops leading spaces,
which gives other ids than LLaVA was trained with. So the conversion is done here. The model's own settings are read
first; those that cannot be converted exactly are refused by name, and the result is compared with the original.
"""

from __future__ import annotations

import importlib
import random
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.errors import BadCheckpoint, MissingDependency
from sdrpn.host.placeholder import describe_placeholder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["tokenizer_from_sentencepiece"]

_SPACE = "▁"
_BPE, _MODEL_TYPES = 2, {1: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}  # TrainerSpec.ModelType
_USER_DEFINED = 4  # ModelProto.SentencePiece.Type
# Texts on which converted and original tokenizer must agree: spaces everywhere, newlines, scripts, bytes.
_PROBES = (
    "What is written on the plate?",
    " leading and  double spaces ",
    "\nRead\tthe code 0123-XYZ.\r\n\n",
    "été, Привет, 日本語, \u0e44\u0e17\u0e22",
    "🙂",
    "",
    " ",
    "   ",
)
_RANDOM_PROBES = 300


@dataclass(frozen=True)
class _Model:
    """A `tokenizer.model`: the library's processor, and the protobuf message that it was read from."""

    path: Path
    processor: Any
    proto: Any

    @property
    def user_defined(self) -> list[str]:
        """Pieces that are matched before any merge, longest first."""
        return sorted((p.piece for p in self.proto.pieces if p.type == _USER_DEFINED), key=len, reverse=True)


def tokenizer_from_sentencepiece(path: Path, *, add_bos: bool) -> Tokenizer:
    """Convert to the behaviour of the slow ("legacy") LLaMA tokenizer, which LLaVA was trained with, whatever the
    config says.

    Every piece of text gets a leading space, even if it starts with a space or follows a special token; with
    `add_bos`, BOS comes first.

    Raises: BadCheckpoint for a file that is not such a model, or cannot be converted exactly; MissingDependency.
    """
    placeholder = describe_placeholder(path)
    if placeholder is not None:
        raise BadCheckpoint(placeholder)
    model = _read_model(path)
    _require_convertible(model)
    try:
        tokenizer = _tokenizer(model, add_bos)
    except Exception as error:  # the library raises bare Exceptions
        raise BadCheckpoint(f"{path} cannot be converted ({error}); {_advice(path)}") from error
    _require_same_ids(model, tokenizer)
    return tokenizer


def _read_model(path: Path) -> _Model:
    try:
        from sentencepiece import SentencePieceProcessor

        messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError:
        raise MissingDependency(f"{path} needs sentencepiece; install it: pip install 'sdrpn[export]'") from None
    try:
        processor = SentencePieceProcessor(model_file=str(path))
        return _Model(path, processor, messages.ModelProto.FromString(processor.serialized_model_proto()))
    except Exception as error:  # each library raises its own types
        reason = " ".join(str(error).split())[:200]
        raise BadCheckpoint(f"{path} cannot be converted ({reason}); {_advice(path)}") from error


def _require_convertible(model: _Model) -> None:
    normalizer, trainer = model.proto.normalizer_spec, model.proto.trainer_spec
    reasons = (
        (trainer.model_type != _BPE, f"is a {_MODEL_TYPES.get(trainer.model_type, 'non-standard')} model"),
        (normalizer.precompiled_charsmap, f"changes characters by the rules {normalizer.name or 'of its own'!r}"),
        (model.proto.denormalizer_spec.precompiled_charsmap, "changes characters of decoded text"),
        (not normalizer.escape_whitespaces, "keeps spaces as they are"),
        (trainer.treat_whitespace_as_suffix, "puts spaces after words"),
    )
    for is_unsupported, reason in reasons:
        if is_unsupported:
            raise BadCheckpoint(f"{model.path} {reason}, which cannot be converted exactly; {_advice(model.path)}")


def _advice(path: Path) -> str:
    folder = shlex.quote(str(path.parent))
    return (
        'put a tokenizer.json beside it, which transformers makes: python -c "import sys, transformers; '
        f'transformers.AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])" {folder}'
    )


# The parts of a tokenizer --------------------------------------------------------------------------------------------


def _tokenizer(model: _Model, add_bos: bool) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, models, processors

    original = model.processor
    special = {original.id_to_piece(i): i for i in (original.unk_id(), original.bos_id(), original.eos_id()) if i >= 0}
    pieces = {original.id_to_piece(i): i for i in range(original.get_piece_size())}
    bpe = {
        "vocab": pieces,
        "merges": _merges(model),
        "unk_token": original.id_to_piece(original.unk_id()),
        "fuse_unk": True,
        "byte_fallback": model.proto.trainer_spec.byte_fallback,
    }
    tokenizer = Tokenizer(models.BPE(**bpe))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    _set_normalizer(tokenizer, model)
    if model.user_defined:
        _find_first(tokenizer, model)
        tokenizer.model = models.BPE(**bpe, ignore_merges=True)
    if add_bos and original.bos_id() >= 0:
        bos = original.id_to_piece(original.bos_id())
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, original.bos_id())]
        )
    return tokenizer


def _set_normalizer(tokenizer: Tokenizer, model: _Model) -> None:
    """Set how spaces become pieces and are restored."""
    from tokenizers import Regex, decoders, normalizers

    spec = model.proto.normalizer_spec
    steps: list[Any] = []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(pattern), "") for pattern in (r"\A +", r" +\z")]
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    prefix = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *prefix]
    )


def _find_first(tokenizer: Tokenizer, model: _Model) -> None:
    """Split the text at user-defined pieces: the longest at each place, also inside words, never merged with others.

    Such a piece must become one token although no merges produce it. The library has an option that does this for
    every whole part that is a piece, which must not change the result for the others.
    """
    from tokenizers import Regex, pre_tokenizers

    escaped = [re.sub(r"([\\^$.|?*+()\[\]{}\-])", r"\\\1", piece) for piece in model.user_defined]
    user_defined = set(model.user_defined)
    for piece in tokenizer.get_vocab(with_added_tokens=False):
        token_id = model.processor.piece_to_id(piece)
        if piece in user_defined or not _is_merged(model.processor, token_id):
            continue
        found = [token.id for token in tokenizer.model.tokenize(piece)]
        if found != [token_id]:
            raise ValueError(f"no merges produce its piece {piece!r}, and it has user-defined pieces")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(escaped)), "isolated")


def _is_merged(original: Any, token_id: int) -> bool:
    return not (
        original.is_byte(token_id)
        or original.is_control(token_id)
        or original.is_unknown(token_id)
        or original.is_unused(token_id)
    )


def _merges(model: _Model) -> list[tuple[str, str]]:
    """Every way to merge two pieces into a third, best score first.

    Pieces of spaces share one score, and SentencePiece then merges the leftmost pair: the longest left part first.
    """
    original, user_defined = model.processor, set(model.user_defined)
    scores = {
        original.id_to_piece(i): original.get_score(i)
        for i in range(original.get_piece_size())
        if _is_merged(original, i) and original.id_to_piece(i) not in user_defined
    }
    found = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, _, left, right in sorted(found)]


# Comparison with the original -----------------------------------------------------------------------------------------


def _require_same_ids(model: _Model, tokenizer: Tokenizer) -> None:
    for text in _probes(model):
        found, expected = tokenizer.encode(text, add_special_tokens=False).ids, model.processor.encode(text)
        if found != expected:
            raise BadCheckpoint(
                f"{model.path} cannot be converted exactly: {text[:60]!r} became {found[:20]}, expected "
                f"{expected[:20]}; {_advice(model.path)}"
            )


def _probes(model: _Model) -> Iterator[str]:
    """Texts of all kinds, every user-defined piece inside and between words, and random sequences of pieces."""
    yield from _PROBES
    for piece in model.user_defined:
        for text in {piece, piece.replace(_SPACE, " ")}:
            yield from (text, f"a{text}b", f"a {text} b", f"{text}{text}", f" {text}\n", f"{text} {text}the")
    rng = random.Random(0)
    normal = [p.piece for p in model.proto.pieces if p.type == 1]
    scores = Counter(p.score for p in model.proto.pieces if p.type == 1)
    # Among equal scores SentencePiece merges the leftmost pair, the tokenizers library the first in its list.
    equal = [p.piece for p in model.proto.pieces if p.type == 1 and scores[p.score] > 1 and set(p.piece) != {_SPACE}]
    for pieces in (normal, equal, model.user_defined + normal[:50]):
        for _ in range(_RANDOM_PROBES if pieces else 0):
            yield "".join(rng.choices(pieces, k=rng.randint(1, 8))).replace(_SPACE, " ")
