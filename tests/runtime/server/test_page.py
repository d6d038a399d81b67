"""The page's files as they are served: complete, allowed to load nothing but themselves, and without inline code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sdrpn.runtime import Session
from sdrpn.runtime.server import page
from sdrpn.tags import shipped_scene
from tests.runtime.server.serving import Server, serving

FOLDER = Path(page.__file__).parent / "page"
FILES = sorted(path.name for path in FOLDER.iterdir())
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SCRIPTS = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.js")}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Session.open("demo", threads=1) as session, serving(session) as running:
        yield running


class Tags(HTMLParser):
    """All tags with their attributes, and the text of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed((FOLDER / "index.html").read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def attributes(self, name: str) -> list[str]:
        return [value for _, attributes in self.found if (value := attributes.get(name)) is not None]


def place(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served(server: Server, name: str) -> None:
    reply = server.get(place(name))
    assert reply.status_code == 200
    assert reply.content == (FOLDER / name).read_bytes()
    assert reply.headers["content-type"].startswith(TYPES[Path(name).suffix])
    again = server.get(place(name), headers={"If-None-Match": reply.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_example_is_the_shipped_scene(server: Server) -> None:
    assert server.get("/page/example.png").content == shipped_scene().picture.read_bytes()
    (question,) = re.findall(r'EXAMPLE_QUESTION = "(.+)";', SCRIPTS["main.js"])
    assert server.session.answer(shipped_scene().picture, question).text == shipped_scene().expected


@pytest.mark.parametrize("path", ["/page/", "/page/missing.js", "/page/..%2fpage.py", "/page/index.html", "/page/x/y"])
def test_nothing_else_is_served(server: Server, path: str) -> None:
    assert server.get(path).status_code == 404


@pytest.mark.parametrize("name", ["index.html", "main.js", "style.css"])
def test_it_may_load_nothing_but_itself(server: Server, name: str) -> None:
    headers = server.get(place(name)).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_there_is_no_inline_code() -> None:
    """Which the policy would refuse anyway."""
    for tag, attributes in Tags().found:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert tag != "style"
        if tag == "script":
            assert attributes.get("src")


def test_nothing_comes_from_elsewhere() -> None:
    for name in FILES:
        text = (FOLDER / name).read_text("utf-8")
        found = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not found, name
        assert "@import" not in text


def test_everything_that_is_named_is_there() -> None:
    tags = Tags()
    named = {value for name in ("src", "href") for value in tags.attributes(name)}
    assert {value for value in named if not value.startswith("#")} <= {place(name) for name in FILES}
    ids = tags.attributes("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in named if value.startswith("#")} <= set(ids)
    assert set(tags.attributes("for")) <= set(ids)
    for name in ("aria-labelledby", "aria-describedby"):
        assert set(tags.attributes(name)) <= set(ids)
    assert set(re.findall(r'\$\("([\w-]+)"\)', SCRIPTS["main.js"])) <= set(ids)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_what_is_there_and_set_text_alone(name: str) -> None:
    script = SCRIPTS[name]
    for exporter, names in re.findall(r'import \{([^}]+)\} from "\./([\w.]+)"', script):
        for wanted in (word.strip() for word in exporter.split(",")):
            assert re.search(rf"export (?:async )?(?:function\*?|class|const) {wanted}\b", SCRIPTS[names]), wanted
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script)
