"""The documentation as a site: every link leads somewhere, and every page fits a phone and a screen."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

REPOSITORY = Path(__file__).parents[1]


class Page(HTMLParser):
    """The links of a page, and where links to it may lead."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links += [found[name] for name in ("href", "src") if found.get(name)]


BADGE = '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="20"/>'


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built; the pages by their path."""
    pytest.importorskip("mkdocs", reason='MkDocs is not installed: pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", folder]
    subprocess.run(command, cwd=REPOSITORY, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    # A server shows the page for what is not found at any address, so its links begin at the server's root.
    return {path: Page(path) for path in sorted(folder.rglob("*.html")) if path.name != "404.html"}


def test_every_link_of_the_site_leads_to_a_page_and_a_heading(site):
    assert len(site) > 25
    lost = []
    for path, page in site.items():
        for link in page.links:
            address, anchor = urldefrag(unquote(link))
            if (
                ":" in address or address.startswith("//") or path.name == "404.html"
            ):  # elsewhere; or a page that is shown anywhere
                continue
            target = (path.parent / address).resolve() if address else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (anchor and target in site and anchor not in site[target].anchors):
                lost.append(f"{path.name}: {link}")
    assert not lost


@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_fits_a_phone_and_a_screen(site, browser, width):
    page, failed = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("requestfailed", lambda request: "ABORTED" in request.failure or failed.append(f"{page.url}: {request.url}"))
    page.on("pageerror", lambda error: failed.append(f"{page.url}: {error}"))
    # Badges come from another host, which is not what is looked at here, and may be out of reach.
    page.route("https://img.shields.io/**", lambda route: route.fulfill(content_type="image/svg+xml", body=BADGE))
    for path in site:
        page.goto(path.as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            failed.append(f"{path.name} is {wide} pixels wide")
        broken = page.evaluate("[...document.images].filter(one => !one.complete || !one.naturalWidth).map(one => one.src)")
        failed += [f"{path.name}: {image}" for image in broken]
    page.close()
    assert not failed
