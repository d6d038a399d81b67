"""Write a checkpoint's tokenizer to the bundle as `tokenizer.json`, and try it with the checkpoint's prompt."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.checkpoint import Checkpoint
from sdrpn.checkpoint.config_section import read_optional_config
from sdrpn.checkpoint.sentencepiece import tokenizer_from_sentencepiece
from sdrpn.errors import BadBundle, BadCheckpoint
from sdrpn.families.registry import prompt_of
from sdrpn.text.tokenizer import load_tokenizer, prepared_tokenizer, token_text

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

__all__ = ["find_tokenizer", "tokenizer_of", "write_tokenizer"]

JSON_NAME, SENTENCEPIECE_NAME = "tokenizer.json", "tokenizer.model"


def find_tokenizer(source: Checkpoint) -> Tokenizer | None:
    """The tokenizer of a checkpoint as its bundle will have it; None where it has none.

    Raises: BadCheckpoint or BadInput where it cannot be read or converted, or a question cannot be put with it.
    """
    folder = source.tokenizer_dir
    if folder is None or not any((folder / name).is_file() for name in (JSON_NAME, SENTENCEPIECE_NAME)):
        return None
    if (folder / JSON_NAME).is_file():
        tokenizer = _read(folder / JSON_NAME)
    else:
        tokenizer = prepared_tokenizer(_converted(folder), folder / SENTENCEPIECE_NAME)
    _require_prompt(tokenizer, source)
    return tokenizer


def tokenizer_of(source: Checkpoint) -> Tokenizer:
    """The same of a checkpoint that is asked questions in words. Raises BadCheckpoint where it has none, too."""
    tokenizer = find_tokenizer(source)
    if tokenizer is None:
        raise BadCheckpoint(f"{source.path} has no tokenizer; put its tokenizer.json or tokenizer.model there")
    return tokenizer


def _require_prompt(tokenizer: Tokenizer, source: Checkpoint) -> None:
    """Tokenise a question, so that a model that cannot be asked fails before the export."""
    spec = source.spec
    prompt = prompt_of(spec, tokenizer, "What is in the image?")
    largest = max((*prompt.ids_before, *prompt.ids_after))
    if largest >= spec.llm.vocabulary:
        raise BadCheckpoint(
            f"{source.path}: a question becomes the token {largest} ({token_text(tokenizer, largest)!r}), and the "
            f"model has {spec.llm.vocabulary}; put the tokenizer of its training there, or name another template",
            options=("template",),
        )


def write_tokenizer(source_dir: Path | None, path: Path) -> bool:
    """Write `path` from `tokenizer.json`, or from `tokenizer.model` (SentencePiece), in `source_dir`.

    Returns: False where the checkpoint has neither; such a bundle works with token ids only.
    Raises: BadCheckpoint where the tokenizer cannot be read or converted; MissingDependency.
    """
    path.unlink(missing_ok=True)
    if source_dir is None:
        return False
    if (source_dir / JSON_NAME).is_file():
        _read(source_dir / JSON_NAME)
        shutil.copyfile(source_dir / JSON_NAME, path)
        return True
    if (source_dir / SENTENCEPIECE_NAME).is_file():
        _converted(source_dir).save(str(path))
        return True
    return False


def _read(path: Path) -> Tokenizer:
    try:
        return load_tokenizer(path)
    except BadBundle as error:
        reason = str(error).removesuffix("; export the checkpoint again")
        raise BadCheckpoint(f"{reason}; replace or remove it") from error


def _converted(source_dir: Path) -> Tokenizer:
    """Convert SentencePiece to tokenizers, with the tokens that were added to its pieces later."""
    path = source_dir / SENTENCEPIECE_NAME
    config = read_optional_config(source_dir / "tokenizer_config.json")
    tokenizer = tokenizer_from_sentencepiece(path, add_bos=config.flag("add_bos_token", True))
    try:
        _add_tokens(tokenizer, source_dir)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, BadCheckpoint):
            raise
        raise BadCheckpoint(
            f"{source_dir}: the added tokens cannot be read ({error!r}); put a tokenizer.json there"
        ) from error
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, source_dir: Path) -> None:
    """Add the tokens that were added to the pieces later; their ids follow those of the pieces."""
    for token_id, token in sorted(_added_tokens(source_dir), key=lambda pair: pair[0]):
        if token.special:
            tokenizer.add_special_tokens([token])
        else:
            tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != token_id:
            raise BadCheckpoint(
                f"{source_dir / SENTENCEPIECE_NAME} cannot be converted: {token.content!r} should have the id "
                f"{token_id} and would get {tokenizer.token_to_id(token.content)}; put a tokenizer.json beside it"
            )


def _added_tokens(source_dir: Path) -> Iterator[tuple[int, AddedToken]]:
    from tokenizers import AddedToken

    for text, token_id in read_optional_config(source_dir / "added_tokens.json").values.items():
        yield token_id, AddedToken(text, normalized=False)
    config = read_optional_config(source_dir / "tokenizer_config.json")
    for token_id, token in config.section("added_tokens_decoder").values.items():
        flags = {name: token[name] for name in ("lstrip", "rstrip", "single_word", "special") if name in token}
        yield int(token_id), AddedToken(token["content"], normalized=False, **flags)
