"""Prefill and decode of a LLaMA of equal shape in other runtimes, all sides in turns in one process.

Ours is the LLM of a bundle (trunk and tail, as a plain LLaVA runs them), the others are random models of the same
layers, width, heads and vocabulary. What is compared is speed alone: the numbers that come out mean nothing.

    pip install gguf openvino-genai transformers    # whichever are wanted; llama.cpp: see llama_library.py
    python benchmarks/other_runtimes.py BUNDLE --variant fused-int4-cpu --others llama-q4_0,llama-q8_0,transformers
    python benchmarks/other_runtimes.py BUNDLE --others openvino-q4_0 --rounds 3 --json

`llama-*` quantises a random GGUF as llama.cpp's own tool does (Q4_0 keeps its head in Q6_K) and `openvino-*` has
OpenVINO GenAI read the same file; without llama.cpp gguf makes it, with the head in Q8_0. `standard` is ours
without `sdrpn optimize`, `ours:BUNDLE:VARIANT:BACKEND` another bundle of ours, or another library.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from llama_library import VARIABLE, LlamaLibrary, LlamaModel, named_folder

from sdrpn.bundle.bundle import open_bundle
from sdrpn.host.machine import read_cpu
from sdrpn.method.spec import LlmSpec
from sdrpn.runtime import Session

PROMPT_TOKENS, NEW_TOKENS = 640, 32
PROMPT_IDS = [3 + index % 200 for index in range(PROMPT_TOKENS)]  # any vocabulary has them
LIBRARIES = ("onnxruntime", "openvino-genai", "transformers", "torch")


class Side(Protocol):
    """Something that holds a model."""

    name: str

    def prefill(self) -> None:
        """A prompt of PROMPT_TOKENS tokens, from nothing."""
        ...

    def decode(self) -> None:
        """NEW_TOKENS single tokens behind it."""
        ...


class OurSide:
    """Trunk and tail of a bundle."""

    def __init__(
        self, bundle: Path, variant: str | None, threads: int, optimized: bool = True, backend: str = "onnxruntime"
    ) -> None:
        self._session = Session.open(
            bundle,
            backend=backend,
            variant=variant,
            threads=threads,
            optimized=optimized,
            decode_copy=True if backend == "openvino" else None,  # whatever the size
            verify=False,
        )
        name = f"sdrpn {bundle.name} {self._session.variant.name}, {backend}"
        self.name = f"{name}{'' if optimized else ', standard'}"
        self._embeds = self._session._embedding.rows(PROMPT_IDS)

    def prefill(self) -> None:
        decoder = self._session._decoder
        slot = decoder.slots.all[0]
        decoder.slots.reset(slot, PROMPT_TOKENS + NEW_TOKENS)
        decoder.run_trunk(slot, self._embeds, 0)
        decoder.run_tail(slot, 0, PROMPT_TOKENS)

    def decode(self) -> None:
        decoder, embedding = self._session._decoder, self._session._embedding
        slot = decoder.slots.all[0]
        slot.truncate(PROMPT_TOKENS)
        for position in range(PROMPT_TOKENS, PROMPT_TOKENS + NEW_TOKENS):
            decoder.step_one(slot, embedding.rows([7]), position)


class LlamaCppSide:
    """llama.cpp, all tokens of a prompt in one batch."""

    def __init__(self, library: LlamaLibrary, gguf: Path, threads: int) -> None:
        self.name = f"llama.cpp {gguf.stem}"
        self._model = LlamaModel(library, gguf, threads, context=1024)

    def prefill(self) -> None:
        self._model.clear()
        self._model.run(PROMPT_IDS)

    def decode(self) -> None:
        for _ in range(NEW_TOKENS):
            self._model.run([7])


class TransformersSide:
    """Hugging Face's LLaMA with random weights in fp32."""

    name = "transformers fp32"

    def __init__(self, llm: LlmSpec, threads: int) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.set_num_threads(threads)
        config = LlamaConfig(
            vocab_size=llm.vocabulary,
            hidden_size=llm.width,
            intermediate_size=llm.mlp_width,
            num_hidden_layers=llm.layers,
            num_attention_heads=llm.heads,
            num_key_value_heads=llm.kv_heads,
            head_dim=llm.head_dim,
            max_position_embeddings=llm.max_context,
        )
        self._torch, self._model = torch, LlamaForCausalLM(config)
        self._cache: Any = None

    def _run(self, ids: Sequence[int]) -> None:
        with self._torch.inference_mode():
            output = self._model(self._torch.tensor([list(ids)]), past_key_values=self._cache, logits_to_keep=1)
        self._cache = output.past_key_values

    def prefill(self) -> None:
        self._cache = None
        self._run(PROMPT_IDS)

    def decode(self) -> None:
        for _ in range(NEW_TOKENS):
            self._run([7])


class OpenVinoSide:
    """OpenVINO GenAI on a GGUF file. It prefills as it generates: a token's time is the rest over the tokens."""

    def __init__(self, gguf: Path, threads: int) -> None:
        import openvino
        import openvino_genai

        self.name = f"OpenVINO GenAI {gguf.stem}"
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # every prompt is the same
        self._pipeline = openvino_genai.LLMPipeline(
            str(gguf), "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads
        )
        ids = np.array([PROMPT_IDS], np.int64)
        self._inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        self._generate = openvino_genai.GenerationConfig
        self._prefill_s = 0.0

    def _run(self, tokens: int) -> None:
        self._pipeline.generate(
            self._inputs,
            self._generate(max_new_tokens=tokens, ignore_eos=True, do_sample=False, apply_chat_template=False),
        )

    def prefill(self) -> None:
        self._run(1)

    def decode(self) -> None:
        """Prompt and all: `measure` takes the prefill off again."""
        self._run(NEW_TOKENS + 1)


def write_random_gguf(path: Path, llm: LlmSpec, kind: str = "f16") -> None:
    """A LLaMA in F16, or in q4_0 or q8_0 with its head in q8_0, with random weights and words that are made up."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(llm.max_context)
    writer.add_embedding_length(llm.width)
    writer.add_block_count(llm.layers)
    writer.add_feed_forward_length(llm.mlp_width)
    writer.add_head_count(llm.heads)
    writer.add_head_count_kv(llm.kv_heads)
    writer.add_layer_norm_rms_eps(llm.rms_norm_eps)
    writer.add_rope_dimension_count(llm.head_dim)
    writer.add_rope_freq_base(llm.rope_theta)
    writer.add_vocab_size(llm.vocabulary)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    _add_vocabulary(writer, llm.vocabulary)
    tensors = _gguf_tensors(llm)
    for name, shape in tensors:
        form = _gguf_form(name, shape, kind)
        block, size_bytes = gguf.GGML_QUANT_SIZES[form]
        stored = shape if form in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16) else None
        bytes_shape = stored or (*shape[:-1], shape[-1] // block * size_bytes)
        dtype = np.dtype(np.uint8) if stored is None else _gguf_dtype(shape)
        total = math.prod(shape) // block * size_bytes
        writer.add_tensor_info(name, bytes_shape, dtype, total, raw_dtype=None if stored else form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for name, shape in tensors:  # one at a time: 13 GB at 7B
        numbers = np.ones(shape) if len(shape) == 1 else rng.standard_normal(shape, np.float32) * shape[1] ** -0.5
        writer.write_tensor_data(gguf.quants.quantize(numbers.astype(np.float32), _gguf_form(name, shape, kind)))
    writer.close()


def _gguf_form(name: str, shape: Sequence[int], kind: str) -> Any:
    """Norms in fp32; of a quantised file the head and the embedding in q8_0."""
    import gguf

    outer = name in ("output.weight", "token_embd.weight")
    form = "f32" if len(shape) == 1 else "q8_0" if outer and kind != "f16" else kind
    return gguf.GGMLQuantizationType[form.upper()]


def _gguf_dtype(shape: Sequence[int]) -> np.dtype[Any]:
    """Norms are in fp32."""
    return np.dtype(np.float32 if len(shape) == 1 else np.float16)


def _add_vocabulary(writer: Any, size: int) -> None:
    import gguf

    # The kind that OpenVINO GenAI can read, which needs the bytes as GPT-2 spells them, and merges.
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    words = ["<unk>", "<s>", "</s>", *letters, *(f"w{number}" for number in range(size - 3 - len(letters)))]
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (size - 3)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(words)
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_merges([f"w {number}" for number in range(10)])
    writer.add_chat_template("{{ messages[0]['content'] }}")
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _gguf_tensors(llm: LlmSpec) -> list[tuple[str, tuple[int, ...]]]:
    queries, keys = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    tensors: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (llm.vocabulary, llm.width))]
    for number in range(llm.layers):
        block = f"blk.{number}"
        tensors += [
            (f"{block}.attn_norm.weight", (llm.width,)),
            (f"{block}.attn_q.weight", (queries, llm.width)),
            (f"{block}.attn_k.weight", (keys, llm.width)),
            (f"{block}.attn_v.weight", (keys, llm.width)),
            (f"{block}.attn_output.weight", (llm.width, queries)),
            (f"{block}.ffn_norm.weight", (llm.width,)),
            (f"{block}.ffn_gate.weight", (llm.mlp_width, llm.width)),
            (f"{block}.ffn_up.weight", (llm.mlp_width, llm.width)),
            (f"{block}.ffn_down.weight", (llm.width, llm.mlp_width)),
        ]
    return [*tensors, ("output_norm.weight", (llm.width,)), ("output.weight", (llm.vocabulary, llm.width))]


def quantized_gguf(folder: Path, kind: str, llm: LlmSpec, library: LlamaLibrary | None) -> Path:
    """folder/q4_0.gguf, made from a random model by llama.cpp's own quantisation, or by gguf's where it is missing."""
    source, target = folder / "f16.gguf", folder / f"{kind}.gguf"
    if target.exists():
        return target
    if library is None:
        write_random_gguf(target, llm, kind)
        return target
    if not source.exists():
        write_random_gguf(source, llm)
    library.quantize(source, target, kind)
    return target


def open_side(name: str, args: argparse.Namespace, llm: LlmSpec, folder: Path) -> Side:
    runtime, _, kind = name.partition("-")
    if name == "standard":
        return OurSide(args.bundle, args.variant, args.threads, optimized=False)
    if name.startswith("ours:"):
        _, bundle, variant, backend = name.split(":")
        return OurSide(Path(bundle), variant or None, args.threads, backend=backend)
    if name == "transformers":
        return TransformersSide(llm, args.threads)
    if runtime in ("llama", "openvino") and kind in ("q4_0", "q8_0"):
        library = llama_library()
        gguf = quantized_gguf(folder, kind, llm, library)
        if runtime == "openvino":
            return OpenVinoSide(gguf, args.threads)
        if library is None:
            raise SystemExit(f"--others {name}: {VARIABLE} has to name llama.cpp's libraries: llama_library.py")
        return LlamaCppSide(library, gguf, args.threads)
    raise SystemExit(
        f"--others {name}: expected standard, ours:BUNDLE:VARIANT:BACKEND, llama-q4_0, llama-q8_0, openvino-q4_0, "
        "openvino-q8_0 or transformers"
    )


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall clock, and processor time of all threads."""
    start, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - processor


def measure(sides: Sequence[Side], rounds: int) -> dict[str, dict[str, float]]:
    """Medians over rounds in which all sides take turns, the order turning round; the first round warms up."""
    found: dict[str, list[tuple[float, ...]]] = {side.name: [] for side in sides}
    for number in range(rounds + 1):
        for side in sides if number % 2 else reversed(sides):
            prefill, decode = timed(side.prefill), timed(side.decode)
            if isinstance(side, OpenVinoSide):
                decode = (decode[0] - prefill[0], decode[1] - prefill[1])
            if number:
                found[side.name].append((*prefill, *decode))
        print(f"\rround {number} of {rounds}", end="" if number < rounds else "\n", file=sys.stderr, flush=True)
    return {name: _figures(each) for name, each in found.items()}


def _figures(rounds: Sequence[tuple[float, ...]]) -> dict[str, float]:
    prefill_s, prefill_cpu_s, decode_s, decode_cpu_s = (
        statistics.median(column) for column in zip(*rounds, strict=True)
    )
    return {
        "prefill_tokens_per_s": PROMPT_TOKENS / prefill_s,
        "decode_tokens_per_s": NEW_TOKENS / decode_s,
        "prefill_tokens_per_processor_s": PROMPT_TOKENS / prefill_cpu_s,
        "decode_tokens_per_processor_s": NEW_TOKENS / decode_cpu_s,
    }


@functools.cache
def llama_library() -> LlamaLibrary | None:
    """llama.cpp's libraries, if the environment names them."""
    folder = named_folder()
    return None if folder is None else LlamaLibrary(folder)


def installed() -> dict[str, str]:
    """The versions of libraries; of llama.cpp, what it uses of this CPU."""
    library = llama_library()
    found = {} if library is None else {"llama.cpp": f"{library.folder.name}, {library.cpu}"}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant")
    parser.add_argument("--backend", default="onnxruntime", help="what BUNDLE is run with")
    parser.add_argument("--others", default="llama-q4_0,llama-q8_0,transformers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gguf", type=Path, help="folder for GGUF files (default: a temporary one)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    llm = open_bundle(args.bundle).spec.llm
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.gguf or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        ours: Side = OurSide(args.bundle, args.variant, args.threads, backend=args.backend)
        others = [open_side(name, args, llm, folder) for name in filter(None, args.others.split(","))]
        figures = measure([ours, *others], args.rounds)
    machine = {"processor": read_cpu().model, "threads": args.threads, "rounds": args.rounds, **installed()}
    if args.json:
        print(json.dumps({"machine": machine, "sides": figures}, indent=1))
        return
    print(machine)
    first = figures[ours.name]
    for name, side in figures.items():
        print(name)
        for figure, value in side.items():
            print(f"  {figure:32}{value:10.1f}   ours / this: {first[figure] / value:.2f}")


if __name__ == "__main__":
    main()
