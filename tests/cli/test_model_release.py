"""`sdrpn release`: steps, results as text and JSON, refusals in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import Command, refusal
from tests.release.small_releases import write_key_pair


def test_from_a_bundle_to_a_device_and_back(
    sdrpn: Command, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    private, public = write_key_pair(tmp_path, password=b"secret")
    (tmp_path / "password").write_text("secret\n")
    store = tmp_path / "store"
    for version in ("1", "2"):
        archive = tmp_path / f"{version}.sdrpn"
        packed = sdrpn(
            "release", "pack", tiny_bundle, "--name", "tiny", "--version", version, "--out", archive, "--json"
        ).json()
        assert (packed["format_version"], packed["created"], packed["targets"]) == (1, "2027-01-15T08:00:00Z", ["cpu"])
        signed = sdrpn("release", "sign", archive, "--key", private, "--password-file", tmp_path / "password")
        assert (signed.code, signed.err) == (0, "")
        assert "not checked: no key was named" in signed.out
        verified = sdrpn("release", "verify", archive, "--require-signed", public, "--fresh", "--json").json()
        assert verified["trusted"]
        done = sdrpn("release", "install", archive, "--store", store, "--require-signed", public, "--no-trial")
        assert (done.code, done.err) == (0, "")
        assert f"tiny {packed['id']}" in done.out
    back = sdrpn("release", "rollback", "--store", store, "--json").json()
    assert (back["version"], back["state"]) == (1, "current")
    listed = sdrpn("release", "list", "--store", store, "--json").json()
    assert [(release["version"], release["state"]) for release in listed["releases"]] == [
        (1, "current"),
        (2, "previous"),
    ]
    assert "previous" in sdrpn("release", "list", "--store", store).out


_DEMO = ("demo", "--name", "a", "--version", "1", "--out", "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: STEP"),
        (("verify", "none"), "none does not exist; expected an archive, as `sdrpn release pack` writes it"),
        (("list", "--store", "none"), "none is not a store of releases; install one into it"),
        (("pack", "demo", "--out", "x"), "needs a name and a version"),
        (("pack", "demo", "--out", "x", "--version", "0"), "0 is not a whole number of at least 1"),
        (("pack", "demo", "--out", "no/x", "--name", "a", "--version", "1"), "no/x is in a folder that does not exist"),
        (("pack", *_DEMO, "--expires-in", "99999999999"), "which is after the year 9999; expected fewer"),
        (("pack", *_DEMO, "--expires-in", "-1"), "expires_in_days is -1; expected 1 or more"),
        (("install", "none", "--store", "s", "--restart", "'"), "no closing quotation; expected a command (--restart)"),
        (("rollback", "--store", "s", "--restart", 'a "'), "no closing quotation"),
        (("rollback", "--store", "s", "--ready-within", "5"), "there is no service to wait for"),
        (("list", "--store", ""), "argument --store: the path is empty"),
        (("sign", "none", "--key", "none"), "none cannot be read"),
        (("verify", "demo", "--require-signed", "none"), "none cannot be read"),
    ],
)
def test_refusals(
    sdrpn: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refusal(sdrpn("release", *arguments))
    assert list(tmp_path.iterdir()) == []


def test_json_of_a_refusal(sdrpn: Command, tmp_path: Path) -> None:
    outcome = sdrpn("release", "list", "--store", tmp_path, "--json")
    assert refusal(outcome).endswith("`sdrpn release install`")
    assert outcome.code == 2
