"""How questions are put to a model: what `sdrpn export` takes, tries, keeps, and refuses before it writes anything."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from sdrpn.bundle.bundle import open_bundle
from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.families.llava.conversations import CONVERSATIONS
from sdrpn.families.llava.prompt import build_prompt
from sdrpn.method.spec import ModelSpec, PromptSpec
from sdrpn.text.prompt import decode_text, load_tokenizer
from tests.cli.command import Command, refusal
from tests.damage import copied, edit_json
from tests.text.test_chat_template import IMAGE_FIRST, LLAVA_HF

TEXT_ONLY = "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim + '\n' }}{% endfor %}"


@pytest.fixture(scope="module")
def hf_checkpoint(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In Hugging Face's layout, with a token for the image. Not to be written to."""
    llm = dataclasses.replace(tiny_spec.llm, vocabulary=288, max_context=512)
    path = tmp_path_factory.mktemp("hf") / "checkpoint"
    spec = dataclasses.replace(tiny_spec, llm=llm, rpn=None, prompt=PromptSpec(image_token_id=280))
    write_random_checkpoint(path, spec, layout="hf", with_tokenizer=True)
    return path


def prompt_text(bundle: Path, question: str = "what?") -> tuple[str, str]:
    opened = open_bundle(bundle)
    tokenizer = load_tokenizer(opened.file("tokenizer.json"))
    prompt = build_prompt(tokenizer, opened.spec.prompt, question)
    return decode_text(tokenizer, prompt.ids_before), decode_text(tokenizer, prompt.ids_after)


@pytest.mark.parametrize("name", ["vicuna_v1", "llava_llama_2", "mistral_instruct", "mpt", "llava_v0", "plain"])
def test_conversations_by_name(sdrpn: Command, text_checkpoint: Path, tmp_path: Path, name: str) -> None:
    outcome = sdrpn("export", text_checkpoint, "--out", tmp_path / "bundle", "--template", name)
    assert (outcome.code, outcome.err) == (0, f"sdrpn: bundle: {tmp_path / 'bundle'}\n")
    assert f"questions are put by the prompt {name}\n" in outcome.out
    conversation = CONVERSATIONS[name]
    expected = f"{conversation.before_question}what?{conversation.after_question}"
    assert prompt_text(tmp_path / "bundle") == (conversation.before_image, expected)


@pytest.mark.parametrize("name", ["template.jinja", "tokenizer_config.json", "chat_template.json"])
def test_templates_of_files(sdrpn: Command, text_checkpoint: Path, tmp_path: Path, picture: Path, name: str) -> None:
    content = IMAGE_FIRST if name == "template.jinja" else json.dumps({"chat_template": IMAGE_FIRST})
    (tmp_path / name).write_text(content)
    arguments = ("export", text_checkpoint, "--out", tmp_path / "bundle", "--template", tmp_path / name)
    found = sdrpn(*arguments, "--json").json()
    assert found["prompt"] == IMAGE_FIRST
    assert prompt_text(tmp_path / "bundle") == ("", "what?")
    assert sdrpn("ask", tmp_path / "bundle", picture, "what?", "--max-new-tokens", "2").code == 0


def test_the_given_template_stays_with_the_bundle(
    sdrpn: Command, text_checkpoint: Path, tmp_path: Path, picture: Path
) -> None:
    bundle = tmp_path / "bundle"
    export = ("export", text_checkpoint, "--out", bundle)
    assert sdrpn(*export, "--template", "llava_llama_2").code == 0
    assert sdrpn(*export, "--kv-cache", "int8").code == 0
    assert open_bundle(bundle).manifest.given_template == "llava_llama_2"
    message = refusal(sdrpn(*export, "--precision", "fp16", "--template", "mpt"))
    assert "its prompt differs (llava_llama_2 there, mpt here); name another folder (--out)" in message
    # What is compared with the checkpoint is asked in the same way.
    outcome = sdrpn("verify", "--exact", bundle, "--checkpoint", text_checkpoint, "--variant", "fused-fp32")
    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize(
    ("content", "name", "match"),
    [
        (None, "llava_lama_2", r"is neither a file nor a template's name; did you mean llava_llama_2\? names: vicuna"),
        (None, "nowhere.jinja", "is neither a file nor a template's name; names: vicuna_v1"),
        ("", "empty.jinja", "has no chat template; expected one in Jinja, or JSON with a chat_template"),
        ("{}", "config.json", "has no chat template"),
        ("[]", "config.json", "is not a JSON object"),
        ("<!doctype html>", "x.jinja", r"is a web page \(HTML\), not the file"),
        ("{{ messages[0].content[1].text }}", "x.jinja", "places no images; expected exactly one"),
        ("<image>", "x.jinja", "leaves the question out"),
        ("{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}", "x.jinja", "too many steps"),
        ("{% generate %}", "x.jinja", "cannot be filled"),
    ],
)
def test_templates_that_are_refused(
    sdrpn: Command, text_checkpoint: Path, tmp_path: Path, content: str | None, name: str, match: str
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    if content is not None:
        (given / name).write_text(content)
    argument = name if content is None else given / name
    message = refusal(sdrpn("export", text_checkpoint, "--out", tmp_path / "bundle", "--template", argument))
    assert re.search(match, message), message
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


# --- what checkpoints bring


@pytest.mark.parametrize("template", [LLAVA_HF, TEXT_ONLY], ids=["llava-hf", "text only"])
def test_a_checkpoints_own_template(
    sdrpn: Command, hf_checkpoint: Path, tmp_path: Path, picture: Path, template: str
) -> None:
    checkpoint = copied(hf_checkpoint, tmp_path)
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    bundle = tmp_path / "bundle"
    outcome = sdrpn("export", checkpoint, "--out", bundle)
    assert (outcome.code, outcome.err) == (0, f"sdrpn: bundle: {bundle}\n")
    assert "questions are put by the chat template of the checkpoint\n" in outcome.out
    before, after = prompt_text(bundle)
    assert (before + "<image>" + after).startswith(("USER: <image>\nwhat? ASSISTANT:", "user: <image>\nwhat?\n"))
    assert sdrpn("ask", bundle, picture, "what?", "--max-new-tokens", "2", "--no-roi").code == 0


def test_a_template_that_cannot_be_asked_stops_the_export(sdrpn: Command, hf_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = copied(hf_checkpoint, tmp_path)
    (checkpoint / "chat_template.jinja").write_text("{{ raise_exception('for text only') }}")
    message = refusal(sdrpn("export", checkpoint, "--out", tmp_path / "bundle"))
    assert message.endswith(
        "the chat template cannot be filled (for text only); expected one for images: "
        "name another with `sdrpn export --template NAME|FILE`"
    )
    assert not (tmp_path / "bundle").exists()
    assert sdrpn("export", checkpoint, "--out", tmp_path / "bundle", "--template", "vicuna_v1").code == 0


def test_a_prompt_with_tokens_that_the_model_lacks(sdrpn: Command, text_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = copied(text_checkpoint, tmp_path)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(f"<|{i}|>", special=True, normalized=False) for i in range(300)])
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    (tmp_path / "a.jinja").write_text("<|299|>" + IMAGE_FIRST)
    message = refusal(sdrpn("export", checkpoint, "--out", tmp_path / "bundle", "--template", tmp_path / "a.jinja"))
    assert "a question becomes the token" in message
    assert "'<|299|>'" in message


def test_verify_asks_in_words(sdrpn: Command, hf_checkpoint: Path, tmp_path: Path) -> None:
    """A tokenizer that was changed after the export is found, although every graph is right."""
    bundle = tmp_path / "bundle"
    assert sdrpn("export", hf_checkpoint, "--out", bundle).code == 0
    report = sdrpn("verify", bundle, "--checkpoint", hf_checkpoint, "--json").json()
    agreement = [gate for gate in report["gates"]["fused-fp32"] if gate["kind"] == "token agreement"]
    plain = sum(check["kind"] == "token agreement" for check in report["checks"])
    assert (len(agreement), plain) == (1, 1)
    assert agreement[0]["tensor"] == "3 questions"  # two by token ids, one in words
    edit_json(bundle / "manifest.json", lambda value: value["spec"]["prompt"].update(template="mpt"))
    message = refusal(sdrpn("verify", bundle, "--checkpoint", hf_checkpoint))
    assert "was not exported from" in message
