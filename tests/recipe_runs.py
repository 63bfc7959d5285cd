"""Running scripts from tests: in this process, or `recipes/train.py` in one of its own that may be killed."""

import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"
CONFIGS = RECIPES / "configs"
DIGITS = CONFIGS / "digits.yaml"
SMALL = ["dataset=digits", "validation=137", "width=0.05", "hidden=16", "backend=torch", "precision=32-true"]
TINY = [
    *SMALL,
    "threshold_scales=[0.4]",
    "calibration_images=32",
    "calibration_T=3",
    "conversion_T=3",
    "conversion_images=20",
    "activity_images=20",
]
SHORT = [*TINY, "conversion_images=0", "ann.epochs=2", "snn.epochs=2", "ann.batch_size=100", "snn.batch_size=100"]
GROWN = ["calibration=one_spike", "threshold_scales=[1.0]", "one_step=0.5", "distillation=1", "snn.relative=true", "snn.lr=0.3"]

sys.path.insert(0, str(RECIPES))


def train(monkeypatch, *arguments):
    """Run the script in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        runpy.run_path(str(RECIPES / "train.py"), run_name="__main__")
    finally:
        signal.signal(signal.SIGTERM, handler)


def call(monkeypatch, capsys, script, *arguments):
    """Run a script in this process, which has imported most of what it needs; return its exit status, and what it said."""
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    code = 0
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    told = "".join(capsys.readouterr())
    return (1, told + code) if isinstance(code, str) else (code, told)  # a message is what Python prints, and ends with 1


def outcome(folder):
    """What a run ended with: the network's digest, the results and the history, without times."""
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for entry in history:
        del entry["seconds"]
    network = json.loads((folder / "model" / "network.json").read_text())
    return network["weights_sha256"], json.loads((folder / "metrics.json").read_text())["results"], history


def start(folder):
    command = [sys.executable, RECIPES / "train.py", DIGITS, "--out", folder, "--device", "cpu", "--resume", "--save-every", 0]
    return popen([*command, "--set", *SHORT])


def popen(command):
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def checkpoints_of(folder):
    return {path.name for path in folder.glob("*/step-*.pt")}


def wait_for_steps(process, folder, before):
    while checkpoints_of(folder) <= before:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


def torchrun(folder, *arguments):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    recipe = [RECIPES / "train.py", DIGITS, "--out", folder, "--device", "cpu", "--save-every", 0]
    return popen([*launcher, *recipe, *arguments])
