"""Adapters and projectors in files of their own: merged as PEFT merges them, or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from sdrpn.checkpoint import Checkpoint, open_checkpoint
from sdrpn.checkpoint.low_rank import LowRank, merged
from sdrpn.errors import BadCheckpoint
from sdrpn.export import export_bundle
from tests import reference_llava as tiny
from tests.pictures import photo
from tests.reference_llava import ReferenceLlava, make_llava, projector_state, require_same_answers
from tests.tolerances import MERGED_RELATIVE

# Warnings of PEFT's own calls, and those that it raises on purpose.
pytestmark = pytest.mark.filterwarnings("ignore")

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
PREFIX = "base_model.model."


def hf_llava(**text: Any) -> Any:
    torch.manual_seed(0)
    llava: Any = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**tiny._VISION),
            text_config=LlamaConfig(**{**tiny._TEXT, **text}),
            image_token_index=tiny.IMAGE_ID,
            image_seq_length=16,
        )
    )
    tiny.randomize(llava)
    llava.tie_weights()
    llava.eval()
    return llava


def tuned(model: Any, **lora: Any) -> Any:
    """`model` with an adapter that changes something; both matrices of a fresh one give nothing."""
    peft: Any = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": ATTENTION, **lora}))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            elif "magnitude" in name or "modules_to_save" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
    return peft


def require_equal_tensors(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    """`expected` under the names of transformers' modules."""
    from sdrpn.families.llava.names import HF_CURRENT

    prefix = "model.vision_tower." if "model.vision_tower.embeddings.class_embedding" in expected else None
    for name in checkpoint.names:
        stored = expected[HF_CURRENT.file_name(name, prefix)].numpy()
        found = checkpoint.read(name).astype(np.float32)
        difference = np.abs(found - stored).max() / max(1.0, np.abs(stored).max())
        assert difference < MERGED_RELATIVE, f"{name} differs by {difference:.2e}"


EVERYWHERE = (
    r".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|fc1|fc2|linear_1|linear_2|lm_head|embed_tokens)"
)
ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {},
    "every layer that there is": {"target_modules": EVERYWHERE},
    "rank-stabilised": {"use_rslora": True, "target_modules": EVERYWHERE},
    "patterns": {
        "target_modules": EVERYWHERE,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 3, "^model.vision_tower.*fc1": 5, "lm_head": 6},
        "alpha_pattern": {"down_proj": 7, "language_model.layers.0.self_attn.q_proj": 30, "embed_tokens": 3},
    },
    "modules to save": {"modules_to_save": ["multi_modal_projector", "lm_head", "embed_tokens", "norm"]},
    "DoRA": {"use_dora": True, "target_modules": EVERYWHERE.replace("|embed_tokens", "")},
    "with a bias": {"lora_bias": True, "target_modules": r".*(vision_tower.*(q_proj|fc1)|linear_2)"},
    "biases of the base": {"bias": "all", "target_modules": r".*(vision_tower.*(q_proj|fc1)|linear_2|v_proj)"},
    "patch embedding": {"target_modules": ["patch_embedding", "q_proj"]},
    "patch embedding, DoRA": {"target_modules": ["patch_embedding", "q_proj"], "use_dora": True},
    "fan in, fan out": {"fan_in_fan_out": True},  # means nothing for torch's Linear: PEFT warns, and turns it off
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_adapter(tmp_path: Path, name: str) -> None:
    """A folder as PEFT saves it, without a config.json: every tensor is that of PEFT's merged model."""
    llava = hf_llava()
    llava.save_pretrained(tmp_path / "base")
    peft = tuned(llava, **ADAPTERS[name])
    peft.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "config.json").exists()
    with torch.no_grad():
        expected = peft.merge_and_unload().state_dict()
    with open_checkpoint(tmp_path / "adapter", base=tmp_path / "base") as checkpoint:
        require_equal_tensors(checkpoint, expected)
        changed = [n for n in checkpoint.names if checkpoint._places[n].change is not None]
        (note,) = checkpoint.notes
    assert f"{len(changed)} tensors are changed" in note
    assert changed


def test_an_adapter_of_transformers_4(tmp_path: Path) -> None:
    """Older module names, the adapter's own name within those of its tensors, a .bin file."""
    llava = hf_llava()
    llava.save_pretrained(tmp_path / "base")
    peft = tuned(llava)
    peft.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {
        name.replace("model.language_model.", "language_model.model.").replace(".weight", ".default.weight"): tensor
        for name, tensor in load_file(path).items()
    }
    path.unlink()
    torch.save(tensors, path.with_suffix(".bin"))
    expected = peft.merge_and_unload().state_dict()
    with open_checkpoint(tmp_path / "adapter", base=tmp_path / "base") as checkpoint:
        require_equal_tensors(checkpoint, expected)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(photo((70, 50))).save(tmp_path / "p.png")
    return tmp_path / "p.png"


def save_llava_lora(folder: Path, reference: ReferenceLlava, peft: Any, projector: Any, **config: Any) -> None:
    """A folder as LLaVA's train.py leaves it with --lora_enable."""
    reference.save(folder, **config)
    (folder / "model.safetensors").unlink()
    peft.save_pretrained(folder)
    trained = {f"{PREFIX}{name}": tensor.half() for name, tensor in projector_state(projector).items()}
    torch.save(trained, folder / "non_lora_trainables.bin")


@pytest.mark.parametrize("base_is", ["vicuna", "llava"])
def test_llava_lora_through_export(tmp_path: Path, picture: Path, base_is: str) -> None:
    """For a language model alone, and for a whole LLaVA with another projector."""
    reference = make_llava(num_key_value_heads=2)
    base = reference.save(tmp_path / "base", without="mm_projector" if base_is == "vicuna" else None)
    if base_is == "vicuna":
        shutil.rmtree(base / "clip")
        reference.text.config.save_pretrained(base)
    tiny.randomize(reference.projector)
    with torch.no_grad():
        for parameter in reference.projector.parameters():
            parameter.copy_((parameter + 0.1).half().float())
    peft = tuned(reference.text, r=8, lora_alpha=16, target_modules=[*ATTENTION, "gate_proj", "up_proj", "down_proj"])
    save_llava_lora(tmp_path / "lora", reference, peft, reference.projector)
    with pytest.raises(BadCheckpoint, match=r"lora holds only an adapter; name the folder of its base$"):
        open_checkpoint(tmp_path / "lora")
    export_bundle(tmp_path / "lora", tmp_path / "b", base=base)
    merged_reference = ReferenceLlava(peft.merge_and_unload(), reference.tower, reference.projector)
    require_same_answers(tmp_path / "b", merged_reference, picture)


def test_peft_adapter_through_export(tmp_path: Path, picture: Path) -> None:
    llava = hf_llava()
    llava.save_pretrained(tmp_path / "base")
    peft = tuned(llava, target_modules=EVERYWHERE, use_rslora=True, lora_alpha=2)
    peft.save_pretrained(tmp_path / "adapter")
    export_bundle(tmp_path / "adapter", tmp_path / "b", base=tmp_path / "base")
    whole = PeftModel.from_pretrained(hf_llava(), tmp_path / "adapter").merge_and_unload()

    class Text:
        def get_input_embeddings(self) -> Any:
            return whole.get_input_embeddings()

        def __call__(self, inputs_embeds: torch.Tensor) -> Any:
            return whole(inputs_embeds=inputs_embeds)

    require_same_answers(
        tmp_path / "b", ReferenceLlava(Text(), whole.model.vision_tower, whole.model.multi_modal_projector), picture
    )


def test_whose_tokenizer_and_template(tmp_path: Path) -> None:
    """The adapter's own where it was saved with one; a template that only the base has still counts."""
    llava = hf_llava()
    llava.save_pretrained(tmp_path / "base")
    tuned(llava).save_pretrained(tmp_path / "adapter")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    (tmp_path / "base" / "chat_template.jinja").write_text("of the base")

    def opened() -> tuple[Path | None, str]:
        with open_checkpoint(tmp_path / "adapter", base=tmp_path / "base") as checkpoint:
            return checkpoint.tokenizer_dir, checkpoint.spec.prompt.template

    assert opened() == (tmp_path / "base", "of the base")
    (tmp_path / "adapter" / "tokenizer.json").write_text("{}")
    assert opened() == (tmp_path / "adapter", "of the base")
    (tmp_path / "adapter" / "chat_template.jinja").write_text("of the adapter")
    assert opened() == (tmp_path / "adapter", "of the adapter")


def test_the_digest_knows_the_adapter(tmp_path: Path) -> None:
    llava = hf_llava()
    llava.save_pretrained(tmp_path / "base")
    tuned(llava).save_pretrained(tmp_path / "adapter")
    digests = set()
    for alpha in (12, 13):
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": alpha}))
        with open_checkpoint(tmp_path / "adapter", base=tmp_path / "base") as checkpoint:
            digests.add(checkpoint.digest())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "adapter" / "adapter_model.safetensors"
    )
    with open_checkpoint(tmp_path / "adapter", base=tmp_path / "base") as checkpoint:
        digests.add(checkpoint.digest())
    assert len(digests) == 3


# What beside whole weights is not used, or only when it is asked for --------------------------------------------------


def test_an_adapter_that_was_left_beside_whole_weights(tmp_path: Path) -> None:
    reference = make_llava()
    folder = reference.save(tmp_path / "c")
    with open_checkpoint(folder) as checkpoint:
        expected = {name: checkpoint.read(name).copy() for name in checkpoint.names}
    tuned(reference.text).save_pretrained(folder)
    torch.save({}, folder / "non_lora_trainables.bin")
    with open_checkpoint(folder) as checkpoint:
        (note,) = checkpoint.notes
        for name, array in expected.items():
            np.testing.assert_array_equal(checkpoint.read(name), array)
    assert "adapter_config.json and non_lora_trainables.bin beside them is not merged" in note


def test_a_projector_apart(tmp_path: Path, picture: Path) -> None:
    reference = make_llava()
    folder = reference.save(tmp_path / "c", without="mm_projector")
    torch.save(projector_state(reference.projector), folder / "mm_projector.bin")
    with pytest.raises(
        BadCheckpoint, match=r"have no projector, and mm_projector\.bin beside.* as the projector: .*bin$"
    ):
        open_checkpoint(folder)
    for number, given in enumerate((folder, folder / "mm_projector.bin")):
        export_bundle(folder, tmp_path / f"b{number}", projector=given)
        require_same_answers(tmp_path / f"b{number}", reference, picture)


def test_a_projector_beside_one_in_the_weights(tmp_path: Path) -> None:
    reference = make_llava()
    folder = reference.save(tmp_path / "c")
    other = {name.removeprefix("model."): tensor + 1 for name, tensor in projector_state(reference.projector).items()}
    torch.save(other, folder / "mm_projector.bin")
    with open_checkpoint(folder) as checkpoint:
        own = checkpoint.read("projector.fc1.bias").copy()
        (note,) = checkpoint.notes
    assert "mm_projector.bin beside them is not" in note
    with open_checkpoint(folder, projector=folder) as checkpoint:
        np.testing.assert_allclose(checkpoint.read("projector.fc1.bias"), own + 1)
        assert checkpoint.notes == ()


def test_a_projector_alone(tmp_path: Path, picture: Path) -> None:
    """What LLaVA's first stage leaves: the base is the language model that it was trained with."""
    reference = make_llava(projector_layers=1)
    whole = reference.save(tmp_path / "stage1", mm_projector_type="linear")
    (whole / "model.safetensors").unlink()
    torch.save(projector_state(reference.projector), whole / "mm_projector.bin")
    reference.text.save_pretrained(tmp_path / "vicuna")
    with pytest.raises(BadCheckpoint, match=r"holds mm_projector\.bin and no weights; name the folder .* as its base"):
        open_checkpoint(whole)
    export_bundle(whole, tmp_path / "b", base=tmp_path / "vicuna")
    require_same_answers(tmp_path / "b", reference, picture)


@pytest.mark.parametrize(
    ("rename", "says"),
    [
        (lambda name: name.replace(".2.", ".4."), r"mm_projector\.4\.(bias|weight) of .* has no place in this model"),
        (lambda name: None if ".2.bias" in name else name, r"lacks projector\.fc2\.bias \(and 0 more\)"),
        (lambda name: name.replace("mm_projector.0", "mm_projector"), "has no place in this model"),
        (lambda name: name.replace("mm_projector", "vision_resampler"), "vision_resampler.* has no place"),
    ],
)
def test_a_projector_of_another_kind(tmp_path: Path, rename: Any, says: str) -> None:
    reference = make_llava()
    folder = reference.save(tmp_path / "c")
    tensors = {rename(name): tensor for name, tensor in projector_state(reference.projector).items() if rename(name)}
    torch.save(tensors, folder / "mm_projector.bin")
    with pytest.raises(BadCheckpoint, match=says):
        open_checkpoint(folder, projector=folder)


# What cannot be merged ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`adapter` and its `base`; not to be written to."""
    folder = tmp_path_factory.mktemp("adapter")
    llava = hf_llava()
    llava.save_pretrained(folder / "base")
    tuned(llava).save_pretrained(folder / "adapter")
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "LOHA"}, 'peft_type is "LOHA", which is not merged here; expected LORA'),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": ["LORA"]}, "peft_type is"),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens is set: this adapter acts on some tokens only"),
        ({"use_qalora": True}, "use_qalora is set"),
        ({"layer_replication": [[0, 2], [1, 4]]}, "layer_replication is set: this adapter repeats layers"),
        ({"target_parameters": ["x"]}, "target_parameters is set"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is set"),
        ({"init_lora_weights": "pissa_niter_4"}, 'init_lora_weights is "pissa_niter_4", which changes the base'),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"r": 5}, "the rank 5; its tensors have 4: config and weights do not belong together"),
        ({"r": "4"}, "r is '4'; expected a whole number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan; expected a finite number"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "is inf; expected a finite number"),
        ({"lora_alpha": None, "alpha_pattern": {"(a+)+b": 3}}, "too many groups and repetitions"),
        ({"alpha_pattern": {".?" * 60 + "x": 3}}, "too many groups and repetitions"),
        ({"rank_pattern": {"(a|a)" * 20: 3}}, "too many groups and repetitions"),
        ({"alpha_pattern": {f".*x{number}": 3 for number in range(17)}}, "more than 16 regular expressions"),
        ({"alpha_pattern": {"[": 3}}, "is not a regular expression"),
        ({"alpha_pattern": {"q" * 300: 3}}, "too long"),
        ({"alpha_pattern": {"q_proj": "x"}}, "q_proj is 'x'; expected a number"),
        ({"rank_pattern": 3}, "rank_pattern is 3; expected an object"),
        ({"rank_pattern": {"q_proj": 2}}, "the rank 2; its tensors have 4"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, adapter: Path, changes: dict[str, Any], says: str) -> None:
    shutil.copytree(adapter / "adapter", tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(BadCheckpoint, match=says) as caught:
        open_checkpoint(tmp_path / "a", base=adapter / "base")
    assert "\n" not in str(caught.value)


FIRST = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({FIRST: None}, "has no lora_A for base_model.*q_proj; expected both"),
        ({FIRST: torch.zeros(4, 63)}, r"has the shape \[4, 63\]; expected \[4, 64\]: the adapter is for another base"),
        ({FIRST: torch.zeros(4)}, r"has the shape \[4\]; expected \(rank, inputs\)"),
        ({FIRST: torch.zeros(0, 64)}, r"expected \(rank, inputs\)"),
        ({FIRST.replace("lora_A", "lora_B"): torch.zeros(64, 3)}, r"\[64, 3\]; expected \[64, 4\]"),
        ({FIRST.replace("lora_A", "hada_w1_a"): torch.zeros(4, 4)}, "hada_w1_a.* has no place in this model"),
        ({FIRST.replace("layers.0", "layers.9"): torch.zeros(4, 64)}, "layers.9.* has no place"),
        ({FIRST.replace("lora_A", "lora_B").replace("weight", "bias"): torch.zeros(64)}, "has no bias in the model"),
        ({FIRST.replace(".lora_A", ""): torch.zeros(64, 64)}, "both replaces and changes"),
        ({f"{PREFIX}lm_head.weight": torch.zeros(101, 64)}, r"has the shape \[101, 64\]; expected \[100, 64\]"),
        ({f"{PREFIX}lm_head.weight": torch.zeros(100, 64, dtype=torch.int8)}, "is stored as int8"),
        ({f"{PREFIX}model.language_model.embed_tokens.trainable_tokens_delta": torch.zeros(1, 64)}, "has no place"),
    ],
)
def test_weights_that_are_refused(tmp_path: Path, adapter: Path, change: dict[str, Any], says: str) -> None:
    shutil.copytree(adapter / "adapter", tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path) | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(BadCheckpoint, match=says) as caught:
        open_checkpoint(tmp_path / "a", base=adapter / "base")
    assert "\n" not in str(caught.value)


def test_layers_of_the_tower_that_are_never_computed(tmp_path: Path, adapter: Path) -> None:
    """The last one comes after the hidden state that is selected."""
    shutil.copytree(adapter / "adapter", tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    name = f"{PREFIX}model.vision_tower.encoder.layers.2.self_attn.q_proj.lora_"
    save_file(load_file(path) | {f"{name}{part}.weight": torch.zeros(4, 4) for part in "AB"}, path)
    with open_checkpoint(tmp_path / "a", base=adapter / "base") as checkpoint:
        assert "vision.layers.2.attention.q.weight" not in checkpoint.names


@pytest.mark.parametrize("lora", [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["lm_head", "q_proj"]}])
def test_a_tied_table_that_is_changed(tmp_path: Path, lora: dict[str, Any]) -> None:
    llava = hf_llava(tie_word_embeddings=True)
    llava.save_pretrained(tmp_path / "base")
    tuned(llava, **lora).save_pretrained(tmp_path / "adapter")
    with pytest.raises(BadCheckpoint, match="embedding table or the head, which are one tensor in this model"):
        open_checkpoint(tmp_path / "adapter", base=tmp_path / "base")


def test_bases_that_are_none(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"nowhere is not a folder"):
        open_checkpoint(adapter / "adapter", base=tmp_path / "nowhere")
    shutil.copytree(adapter / "adapter", tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match=r"has no weights of its own and cannot be a base"):
        open_checkpoint(adapter / "adapter", base=tmp_path / "a")
    (tmp_path / "a" / "config.json").unlink()
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"has adapter_config\.json and none of adapter_model"):
        open_checkpoint(tmp_path / "a", base=adapter / "base")


def test_the_rest_of_a_lora_without_it(tmp_path: Path) -> None:
    reference = make_llava()
    folder = reference.save(tmp_path / "lora")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    torch.save(projector_state(reference.projector), folder / "non_lora_trainables.bin")
    reference.text.save_pretrained(tmp_path / "vicuna")
    for base in (None, tmp_path / "vicuna"):
        with pytest.raises(BadCheckpoint, match=r"has non_lora_trainables\.bin without adapter_config\.json and its"):
            open_checkpoint(folder, base=base)


def test_a_merge_that_is_not_finite(tmp_path: Path, adapter: Path) -> None:
    shutil.copytree(adapter / "adapter", tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file(load_file(path) | {FIRST: torch.full((4, 64), torch.nan)}, path)
    with open_checkpoint(tmp_path / "a", base=adapter / "base") as checkpoint:
        checkpoint.read("llm.layers.1.attention.q.weight")
        with pytest.raises(BadCheckpoint, match=r"is not finite after .* is merged into it"):
            checkpoint.read("llm.layers.0.attention.q.weight")


def test_a_row_of_zeros_has_no_magnitude() -> None:
    change = LowRank("a", "b", 1.0, "m")
    found = merged(np.zeros((2, 3), np.float32), np.zeros((1, 3)), np.zeros((2, 1)), change, np.ones(2))
    assert not np.isfinite(found).any()


def test_other_adapters_of_peft(tmp_path: Path) -> None:
    llava = hf_llava()
    llava.save_pretrained(tmp_path / "base")
    peft: Any = get_peft_model(llava, LoHaConfig(r=4, target_modules=ATTENTION))
    peft.save_pretrained(tmp_path / "adapter")
    with pytest.raises(BadCheckpoint, match="LOHA"):
        open_checkpoint(tmp_path / "adapter", base=tmp_path / "base")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_merging_is_computed_in_float32_at_least(dtype: Any) -> None:
    """Rounded once, when it is stored in fewer bits."""
    rng = np.random.default_rng(0)
    weight, up, down = (rng.standard_normal(shape).astype(dtype) for shape in ((6, 5), (6, 2), (2, 5)))
    found = merged(weight, down, up, LowRank("a", "b", 0.5))
    exact = weight.astype(np.float64) + 0.5 * up.astype(np.float64) @ down.astype(np.float64)
    assert found.dtype == (np.float64 if dtype is np.float64 else np.float32)
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)
