"""`sdrpn release`: models as signed archives, and the releases of a device.

The JSON form of pack, sign and verify is a sdrpn.workflows.release_pack.PackedRelease, that of install and rollback a
sdrpn.workflows.release_install.ListedRelease; of list a DeviceReleases of the same module: `releases`, a list of them,
the current one first, and what the device has.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.errors import BadInput
from sdrpn.terminal.argument_types import names, positive_int, whole_number
from sdrpn.terminal.arguments import filled
from sdrpn.terminal.progress import progress

if TYPE_CHECKING:
    from sdrpn.workflows.release_install import ServiceCheck

HELP = "pack, sign and install models on devices"
DESCRIPTION = """\
Make one archive of a bundle and its engines, sign it, and install it on devices: beside the release that answers,
checked and tried before the device changes to it, and undone where the service does not become ready.
docs/model-releases.md.

  sdrpn release pack bundle --name street-signs --version 7 --target jetson-agx-orin-jp72 --out signs-7.sdrpn
  sdrpn release sign signs-7.sdrpn --key key.pem
  sdrpn release install signs-7.sdrpn --store /var/lib/sdrpn --require-signed key.pub
  sdrpn serve /var/lib/sdrpn
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the steps and their arguments."""
    steps = parser.add_subparsers(title="steps", metavar="STEP", dest="step", required=True)
    for name, (text, add, do) in _STEPS.items():
        step = steps.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        add(step)
        step.add_argument("--json", action="store_true", help="print the result as JSON")
        step.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        step.set_defaults(do=do)


def run(args: argparse.Namespace) -> int:
    """Do the step and print its result."""
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.workflows.release_text import packed_text, releases_text

    result: Any = args.do(args)
    if args.json:
        print_json(result)
    elif args.step in ("pack", "sign", "verify"):
        print_report(packed_text(result))
    else:
        print_report(releases_text(result.releases if args.step == "list" else [result]))
    return 0


def _add_pack(step: argparse.ArgumentParser) -> None:
    step.add_argument("source", metavar="SOURCE", help="bundle, or an archive of which a delta is made")
    step.add_argument("--out", metavar="FILE", type=Path, required=True, help="the archive to write")
    step.add_argument("--name", help="name of the model; releases of one name replace each other")
    step.add_argument("--version", metavar="N", type=positive_int, help="number that grows with every release")
    step.add_argument(
        "--target", dest="targets", metavar="NAME[,NAME]", type=names, default=(), help="take these engines along"
    )
    step.add_argument(
        "--no-graphs", dest="graphs", action="store_false", help="leave out the ONNX graphs: only engines answer"
    )
    step.add_argument(
        "--expires-in",
        dest="expires_in_days",
        metavar="DAYS",
        type=whole_number,
        default=365,
        help="no device installs it after that; 0: it never expires (default: %(default)s)",
    )
    step.add_argument(
        "--against", metavar="RELEASE", type=Path, help="leave out what this archive, release or store has"
    )


def _pack(args: argparse.Namespace) -> object:
    from sdrpn.terminal.output_file import require_output_file
    from sdrpn.workflows.release_pack import PackRequest, pack_release

    require_output_file("--out", args.out, ())
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    created = datetime.fromtimestamp(int(epoch), timezone.utc) if epoch.isdigit() else _now()
    return pack_release(filled(PackRequest, args, created=created), progress=progress)


def _add_sign(step: argparse.ArgumentParser) -> None:
    step.add_argument("archive", metavar="ARCHIVE", type=Path)
    step.add_argument("--key", metavar="FILE", type=Path, required=True, help="private key in a PEM file, kept offline")
    step.add_argument("--password-file", metavar="FILE", type=Path, help="file with the key's password")
    step.add_argument("--out", metavar="FILE", type=Path, help="the signed archive (default: the same file)")


def _sign(args: argparse.Namespace) -> object:
    from sdrpn.host.json_files import read_text
    from sdrpn.workflows.release_pack import sign_release

    password = None if args.password_file is None else read_text(args.password_file).rstrip("\r\n").encode()
    return sign_release(args.archive, args.key, password=password, out=args.out, progress=progress)


def _add_verify(step: argparse.ArgumentParser) -> None:
    step.add_argument("release", metavar="RELEASE", type=Path, help="archive, folder of a release, or store")
    step.add_argument("--fresh", action="store_true", help="refuse one that has expired")
    _add_keys(step)


def _verify(args: argparse.Namespace) -> object:
    from sdrpn.workflows.release_pack import verify_release

    return verify_release(args.release, args.keys, now=_now() if args.fresh else None, progress=progress)


def _add_install(step: argparse.ArgumentParser) -> None:
    step.add_argument("archive", metavar="ARCHIVE", type=Path)
    _add_store(step)
    step.add_argument("--target", metavar="NAME", help="its engines have to run here; cpu: its graphs (default: any)")
    step.add_argument("--no-trial", dest="trial", action="store_false", help="do not run it once before")
    _add_service(step)
    _add_keys(step)


def _install(args: argparse.Namespace) -> object:
    from sdrpn.terminal.output import remark
    from sdrpn.workflows.release_install import InstallRequest, install_release

    request = filled(InstallRequest, args, now=_now(), keys=tuple(args.keys), service=_service(args))
    return install_release(request, note=remark, progress=progress)


def _add_rollback(step: argparse.ArgumentParser) -> None:
    _add_store(step)
    _add_service(step)


def _rollback(args: argparse.Namespace) -> object:
    from sdrpn.terminal.output import remark
    from sdrpn.workflows.release_install import roll_back_release

    return roll_back_release(args.store, _now(), _service(args), note=remark)


def _list(args: argparse.Namespace) -> object:
    from sdrpn.workflows.release_install import device_releases

    return device_releases(args.store, _now())


def _add_store(step: argparse.ArgumentParser) -> None:
    step.add_argument("--store", metavar="DIR", type=Path, required=True, help="folder of this device's releases")


def _add_keys(step: argparse.ArgumentParser) -> None:
    step.add_argument(
        "--require-signed",
        dest="keys",
        metavar="KEY",
        type=Path,
        action="append",
        default=[],
        help="public key in a PEM file; refuse what it did not sign. Can be given several times: one of them must have",
    )


def _add_service(step: argparse.ArgumentParser) -> None:
    group = step.add_argument_group("the service that answers")
    group.add_argument("--restart", metavar="COMMAND", help="run this after the change: 'systemctl restart sdrpn'")
    group.add_argument(
        "--ready-url", metavar="URL", help="go back where it does not answer 200: http://127.0.0.1:8000/readyz"
    )
    group.add_argument(
        "--ready-within",
        metavar="S",
        type=positive_int,
        help="seconds to wait for either (default: 120)",
    )


def _service(args: argparse.Namespace) -> ServiceCheck:
    from sdrpn.workflows.release_install import ServiceCheck

    if args.ready_within is None:
        return ServiceCheck(args.restart, args.ready_url)
    if args.restart is None and args.ready_url is None:
        raise BadInput(
            "there is no service to wait for; name it with --restart or --ready-url, or leave the time out",
            options=("ready-within",),
        )
    return ServiceCheck(args.restart, args.ready_url, float(args.ready_within))


def _now() -> datetime:
    return datetime.now(timezone.utc)


_Step = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], object]]
_STEPS: dict[str, _Step] = {
    "pack": ("make an archive of a bundle, or a delta of an archive", _add_pack, _pack),
    "sign": ("sign an archive", _add_sign, _sign),
    "verify": ("check every byte of an archive or of an installed release", _add_verify, _verify),
    "install": ("install an archive, and change to it", _add_install, _install),
    "rollback": ("change to the release before", _add_rollback, _rollback),
    "list": ("show the releases of a store", _add_store, _list),
}
