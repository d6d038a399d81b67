"""Bring a checkpoint's tokenizer into the bundle as `tokenizer.json`."""

from __future__ import annotations

import shutil
from pathlib import Path

from sdrpn.errors import BadCheckpoint, MissingDependency

__all__ = ["write_tokenizer"]


def write_tokenizer(source_dir: Path | None, path: Path) -> bool:
    """Write `path` from `tokenizer.json`, or from `tokenizer.model` (SentencePiece), in `source_dir`.

    Returns: False where the checkpoint has neither; such a bundle answers by token ids.
    Raises: BadCheckpoint where the tokenizer cannot be read.
    """
    if source_dir is None:
        return False
    path.unlink(missing_ok=True)
    if (source_dir / "tokenizer.json").is_file():
        _require_readable(source_dir / "tokenizer.json")
        shutil.copyfile(source_dir / "tokenizer.json", path)
        return True
    if (source_dir / "tokenizer.model").is_file():
        _convert(source_dir, path)
        return True
    return False


def _require_readable(path: Path) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise BadCheckpoint(f"{path} is not a tokenizer that can be read ({error}); replace or remove it") from error


def _convert(source_dir: Path, path: Path) -> None:
    """SentencePiece -> tokenizers, by transformers' own conversion; it brings the added tokens of the config too."""
    try:
        from transformers import LlamaTokenizerFast
    except ImportError:
        raise MissingDependency(
            f"{source_dir / 'tokenizer.model'} needs transformers; install it: pip install 'sdrpn[export]'"
        ) from None
    try:
        tokenizer = LlamaTokenizerFast.from_pretrained(source_dir, local_files_only=True)
    except Exception as error:
        raise BadCheckpoint(
            f"{source_dir / 'tokenizer.model'} cannot be converted ({error}); put a tokenizer.json beside it"
        ) from error
    tokenizer.backend_tokenizer.save(str(path))
