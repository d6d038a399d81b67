"""A release: engines without the graphs that they were built from, as it is shipped to devices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.errors import BadBundle, BadInput
from sdrpn.runtime import select as choice
from sdrpn.runtime.checkup.opened_bundle import OpenedBundle
from sdrpn.runtime.engines import platform as platform_module
from sdrpn.runtime.engines.engine_set import engine_set
from sdrpn.runtime.engines.preflight import check_engines
from sdrpn.runtime.select import choose_backend
from tests.cli.command import Command, refusal
from tests.damage import copied
from tests.runtime.engine_files import TARGET, platform, write_engines

SAID = (
    rf"is a release: engines for {TARGET}, without the ONNX graphs that they were built from, which are needed %s; "
    r"answer on a GPU that the engines fit \(sdrpn inspect \S*release\S* --engines says which\), or take the whole "
    r"bundle, as `sdrpn export` made it from "
)


@pytest.fixture
def release(text_bundle: Path, tmp_path: Path) -> Path:
    """Engines, token embedding and tokenizer, as examples/ci/build-engines.sh leaves them."""
    path = copied(text_bundle, tmp_path).rename(tmp_path / "release")
    bundle = open_bundle(path)
    write_engines(bundle)
    kept = {variant.embedding for variant in bundle.manifest.variants.values()} | {bundle.manifest.tokenizer}
    for name in bundle.manifest.files.keys() - kept:
        (path / name).unlink()
    return path


def test_what_is_one(release: Path, text_bundle: Path) -> None:
    assert open_bundle(release).release_targets == (TARGET,)
    assert open_bundle(text_bundle).release_targets == ()
    open_bundle(text_bundle).require_graphs("to build engines")


def test_one_graph_makes_it_a_damaged_bundle(release: Path, text_bundle: Path) -> None:
    graph = open_bundle(release).variant().graphs["trunk"].file
    (release / graph).write_bytes((text_bundle / graph).read_bytes())
    assert open_bundle(release).release_targets == ()


def test_inspect_says_what_it_is(sdrpn: Command, release: Path) -> None:
    found = sdrpn("inspect", release)
    assert (found.code, found.err) == (0, "")
    assert f"a release: engines for {TARGET}, the token embedding and the tokenizer, without" in found.out
    assert f"sdrpn inspect {release} --engines" in found.out
    assert "opset" not in found.out  # nothing of graphs that are not there
    assert sdrpn("inspect", release, "--json").json()["format_version"] == 2


def test_inspect_still_compares_what_is_there(sdrpn: Command, release: Path) -> None:
    embedding = release / open_bundle(release).variant().embedding
    embedding.write_bytes(embedding.read_bytes()[:-1])
    assert "bytes, the manifest says" in refusal(sdrpn("inspect", release))


@pytest.mark.parametrize(
    ("command", "purpose"),
    [
        (("ask", "{}", "{picture}", "What?"), "to answer with ONNX Runtime"),
        (("ask", "{}", "{picture}", "What?", "--backend", "onnxruntime"), "to answer with ONNX Runtime"),
        (("ask", "{}", "{picture}", "What?", "--backend", "onnxruntime-cuda"), "to answer with ONNX Runtime with CUDA"),
        (("bench", "{}"), "to answer with ONNX Runtime"),
        (("doctor", "--device", "--bundle", "{}"), "to answer with ONNX Runtime"),
        (("build", "{}", "--target", TARGET), "to build engines"),
        (("build", "{}", "--target", "l4", "--dry-run"), "to build engines"),
        (("verify", "{}"), "to compare them with the checkpoint"),
        (("verify", "{}", "--target", TARGET), "to compare them with the checkpoint"),
        (("verify", "--exact", "{}", "--checkpoint", "."), "to compare them with the checkpoint"),
        (("optimize", "{}"), "to optimise them for this machine's CPU"),
        (("plan", "{}"), rf"to answer on this machine \(for its engines name the target {TARGET}\)"),
    ],
)
def test_what_needs_graphs_says_what_the_folder_is(
    sdrpn: Command, release: Path, picture: Path, command: tuple[str, ...], purpose: str
) -> None:
    arguments = [part.replace("{picture}", str(picture)).replace("{}", str(release)) for part in command]
    assert re.search(SAID % purpose, refusal(sdrpn(*arguments)))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (40, 30), "teal").save(tmp_path / "street.png")
    return tmp_path / "street.png"


def test_a_machine_without_a_gpu_is_not_advised_to_take_the_cpu(release: Path) -> None:
    engines = engine_set(open_bundle(release), TARGET)
    (problem,) = check_engines(engines, platform(gpu=None, cuda_fault="no driver"))
    assert problem.mend == "run it on a machine with one"


def test_commands_that_build_again_name_the_whole_bundle(release: Path) -> None:
    assert engine_set(open_bundle(release), TARGET).build_command == f"sdrpn build BUNDLE --target {TARGET}"


def test_engines_that_do_not_fit_are_the_reason(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = platform()
    assert here.gpu is not None
    old = platform(libraries={"tensorrt-rtx": "1.6.0.1"})
    monkeypatch.setattr(choice, "read_platform", lambda device=0: old)
    chosen = choose_backend(open_bundle(release))
    with pytest.raises(BadInput, match=r"\(the engines of rtx-4090 are not used: .*VERSION_MISMATCH"):
        choice.graph_variant(open_bundle(release), note=chosen.note)


def test_on_a_gpu_that_fits_there_is_nothing_to_compare_with(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (choice, platform_module):
        monkeypatch.setattr(module, "read_platform", lambda device=0: platform())
    monkeypatch.setattr(choice, "check_engines", lambda *args, **options: ())
    opened = OpenedBundle(release)
    assert (opened.subject.backend, opened.subject.target) == ("tensorrt", TARGET)
    assert opened.open_reference() is None


def test_a_folder_of_bundles_names_them(release: Path) -> None:
    with pytest.raises(BadBundle, match=r"has no manifest\.json; .*did you mean \S*release\?$"):
        open_bundle(release.parent)
    with pytest.raises(BadBundle, match=r"did you mean \S*release\?$"):
        open_bundle(release / "engines" / TARGET)
