"""Bring a checkpoint's tokenizer into the bundle as `tokenizer.json`.

transformers 5 converts `tokenizer.model` too, but orders merges by id instead of by score and swallows leading
spaces: other ids than those with which LLaVA was trained. So the few steps are here, and checked against the original.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.errors import BadCheckpoint, MissingDependency

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

__all__ = ["write_tokenizer"]

_SPACE = "▁"
# Converted and original tokenizer have to agree on these: spaces everywhere, line ends, scripts, bytes.
_PROBES = (
    "What is written on the plate?",
    " leading and  double spaces ",
    "\nRead\tthe code 0123-XYZ.\r\n\n",
    "été, Привет, 日本語, \u0e44\u0e17\u0e22",
    "🙂",
)


def write_tokenizer(source_dir: Path | None, path: Path) -> bool:
    """Write `path` from `tokenizer.json`, or from `tokenizer.model` (SentencePiece), in `source_dir`.

    Returns: False where the checkpoint has neither; such a bundle answers by token ids.
    Raises: BadCheckpoint where the tokenizer cannot be read or converted; MissingDependency.
    """
    path.unlink(missing_ok=True)
    if source_dir is None:
        return False
    if (source_dir / "tokenizer.json").is_file():
        _require_readable(source_dir / "tokenizer.json")
        shutil.copyfile(source_dir / "tokenizer.json", path)
        return True
    if (source_dir / "tokenizer.model").is_file():
        _converted(source_dir).save(str(path))
        return True
    return False


def _require_readable(path: Path) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise BadCheckpoint(f"{path} is not a tokenizer that can be read ({error}); replace or remove it") from error


def _converted(source_dir: Path) -> Tokenizer:
    """SentencePiece -> tokenizers."""
    path = source_dir / "tokenizer.model"
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise MissingDependency(f"{path} needs sentencepiece; install it: pip install 'sdrpn[export]'") from None
    try:
        original = SentencePieceProcessor(model_file=str(path))
        tokenizer = _tokenizer_from_pieces(original, _read_json(source_dir / "tokenizer_config.json"))
        _add_tokens(tokenizer, source_dir)
    except BadCheckpoint:
        raise
    except Exception as error:  # each library has its own, or bare Exception
        raise BadCheckpoint(f"{path} cannot be converted ({error}); put a tokenizer.json beside it") from error
    _require_same_ids(path, tokenizer, original)
    return tokenizer


def _tokenizer_from_pieces(original: Any, config: dict[str, Any]) -> Tokenizer:
    """What the slow ("legacy") LLaMA tokenizer does, with which LLaVA was trained, whatever the config asks for.

    A space goes before every piece of text, also before one that starts with a space and after a special token;
    BOS goes before all.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    special = {original.id_to_piece(i): i for i in (original.unk_id(), original.bos_id(), original.eos_id()) if i >= 0}
    pieces = {original.id_to_piece(i): i for i in range(original.get_piece_size())}
    unknown = original.id_to_piece(original.unk_id())
    model = models.BPE(pieces, _merges(original), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if config.get("add_bos_token", True) and original.bos_id() >= 0:
        bos = original.id_to_piece(original.bos_id())
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, original.bos_id())]
        )
    return tokenizer


def _merges(original: Any) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first.

    Pieces of spaces share one score, and SentencePiece then merges the leftmost pair: the longest left part first.
    """
    scores = {
        original.id_to_piece(i): original.get_score(i)
        for i in range(original.get_piece_size())
        if not (original.is_byte(i) or original.is_control(i) or original.is_unknown(i) or original.is_unused(i))
    }
    found = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, _, left, right in sorted(found)]


def _add_tokens(tokenizer: Tokenizer, source_dir: Path) -> None:
    """Tokens that were added to the pieces later; their ids follow those of the pieces."""
    for token_id, token in sorted(_added_tokens(source_dir), key=lambda pair: pair[0]):
        if token.special:
            tokenizer.add_special_tokens([token])
        else:
            tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != token_id:
            raise BadCheckpoint(
                f"{source_dir / 'tokenizer.model'} cannot be converted: {token.content!r} should have the id "
                f"{token_id} and would get {tokenizer.token_to_id(token.content)}; put a tokenizer.json beside it"
            )


def _added_tokens(source_dir: Path) -> Iterator[tuple[int, AddedToken]]:
    from tokenizers import AddedToken

    for text, token_id in _read_json(source_dir / "added_tokens.json").items():
        yield token_id, AddedToken(text, normalized=False)
    config = _read_json(source_dir / "tokenizer_config.json")
    for token_id, token in config.get("added_tokens_decoder", {}).items():
        flags = {name: token[name] for name in ("lstrip", "rstrip", "single_word", "special") if name in token}
        yield int(token_id), AddedToken(token["content"], normalized=False, **flags)


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return value


def _require_same_ids(path: Path, tokenizer: Tokenizer, original: Any) -> None:
    for text in _PROBES:
        found, expected = tokenizer.encode(text, add_special_tokens=False).ids, original.encode(text)
        if found != expected:
            raise BadCheckpoint(
                f"{path} cannot be converted exactly: {text!r} became {found}, expected {expected}; "
                f"put a tokenizer.json beside it"
            )
