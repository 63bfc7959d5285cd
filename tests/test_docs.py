"""README and documentation: every example runs, every link leads somewhere, what they say is what was recorded."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
import yaml
from torch import nn

import onespike.optim
from onespike.conversion import convert
from onespike.functional import hybrid_cross_entropy, single_spike_lif
from onespike.models import vgg

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ELSEWHERE = {"cuda_graphs.md", "event_cameras.md", "export.md"}
"""Pages whose examples have tests of their own."""
LINK = re.compile(r"(?<!`)\[(?:[^][]|\[[^][]*\])*\]\(([^()\s]+)\)")


def snippets(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def what_a_page_takes_for_granted(page):
    """Names that a page's examples use and do not define."""
    if page not in {"faq.md", "training.md"}:
        return {}
    torch.manual_seed(0)
    ann = vgg("vgg6", 10, width=1 / 32, hidden=16)
    images, labels = torch.rand(4, 3, 32, 32), torch.randint(10, (4,))
    network = convert(ann, images, timesteps=5)
    given = {"torch": torch, "onespike": onespike, "network": network, "ann": ann, "images": images, "x": images}
    if page == "faq.md":
        return {**given, "labels": labels, "hybrid_cross_entropy": hybrid_cross_entropy}

    def loss(output, target):
        return (nn.functional.cross_entropy if isinstance(output, torch.Tensor) else hybrid_cross_entropy)(output, target)

    return {**given, "y": labels, "target": labels, "loss": loss}


@pytest.mark.parametrize(
    "path",
    [path for path in PAGES if path.name not in ELSEWHERE and snippets(path)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_pages_examples_run_in_their_order(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    names = what_a_page_takes_for_granted(path.name)
    for code in snippets(path):
        exec(compile(code, str(path), "exec"), names)
    if path.name == "get_started.md":
        assert names["accuracy"] > 0.85
        assert 0 < names["activity"].mean < 1
    if path.name == "concepts.md":
        x_seq = torch.randn(6, 5, 40)
        s_seq = names["single_spike_lif"](x_seq, torch.tensor(0.9), torch.tensor(0.8))
        assert 0 < s_seq.sum() < s_seq[0].numel()
        assert torch.equal(s_seq, single_spike_lif(x_seq, 0.9, 0.8).s_seq)


def prose(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", prose(path.read_text()), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(path):
    for link in LINK.findall(prose(path.read_text())):
        if re.match(r"\w+:", link):
            assert link.startswith("https://"), link
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.is_relative_to(ROOT), f"{path.name}: {link} leaves the repository"
        assert target.exists(), f"{path.name}: {link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{path.name}: {link} names no heading of {target.name}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_name_files_and_extras_that_exist(path):
    text = path.read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for names in re.findall(r"""pip install (?:-q )?(?:-e )?"(?:\.|onespike)\[([^]]+)\]""", text):
        assert set(names.split(",")) <= set(extras)
    for file in re.findall(r"(?:python|torchrun[^|\n`]*?) ((?:recipes|benchmarks|docs|tests)/[\w/]+\.py)", text):
        assert (ROOT / file).exists(), file
    for file in re.findall(r"recipes/configs/[\w/]+\.yaml", text):
        assert (ROOT / file).exists(), file


def test_every_fault_that_is_listed_has_its_test():
    rows = [line for line in (ROOT / "docs" / "reliability.md").read_text().splitlines() if line.endswith("` |")]
    assert len(rows) >= 40
    for row in rows:
        file, name = re.search(r"`(test_\w+\.py)::(test_\w+)` \|$", row).groups()
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), row


def test_the_readme_fits_on_a_screen_or_two():
    text = (ROOT / "README.md").read_text()
    assert 700 <= len(text.split()) <= 1000
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) <= 2
    assert sum(table.count("\n") - 2 for table in tables) <= 15


def test_what_is_cited_is_this_version_of_the_software():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == onespike.__version__
    assert citation["preferred-citation"]["title"] in (ROOT / "README.md").read_text()
    assert citation["preferred-citation"]["url"].removeprefix("https://arxiv.org/abs/") in (ROOT / "README.md").read_text()


def test_the_figure_is_drawn_by_its_script(tmp_path):
    script = ROOT / "docs" / "figures" / "raster.py"
    command = [sys.executable, str(script), "--epochs", "1", "--out", str(tmp_path / "raster.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.findall(r"^(LIF|one spike), .*?: [\d.]+ % of 360 test images, ([\d.]+) spikes per neuron$", done.stdout, re.M)
    spikes = {name: float(number) for name, number in found}
    assert 0 < spikes["one spike"] < 1 < spikes["LIF"]
    assert (tmp_path / "raster.png").read_bytes().startswith(b"\x89PNG")


def test_reports_of_bugs_hold_what_the_package_says_of_the_machine():
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")}
    assert set(forms) == {"bug", "idea", "numbers"}
    for form in forms.values():
        (field,) = [part for part in form["body"] if part.get("id") == "system"]
        assert "`python -m onespike`" in field["attributes"]["label"]
