"""No secret of the environment reaches a run's files, its output or its checkpoints; nothing comes down unchecked."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from engine.train import main
from models.backbones import BACKBONES
from models.backbones.timm_features import TimmFeatures

ROOT = Path(__file__).parents[3]
SECRETS = {
    "WANDB_API_KEY": "5ec2e7" * 6 + "abcd",
    "HF_TOKEN": "hf_donotwritethisdown0123456789",
    "AWS_SECRET_ACCESS_KEY": "do/not/write/this/down/either/0123456789",
}


def test_no_secret_of_the_environment_is_written_down(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    assert main([*tiny, "--stage", "seg", "--track.wandb", "offline"]) == 0
    printed = "".join(capfd.readouterr())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"seg.pt", "config.yaml", "metrics.jsonl"} <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files)
    for name, value in SECRETS.items():
        assert value not in printed, name
        for path in files:
            assert value.encode() not in path.read_bytes(), f"{name} in {path}"


def test_public_weights_come_over_https_and_carry_their_hash() -> None:
    urls = [b.url for b in (build() for build in BACKBONES.values()) if isinstance(b, TimmFeatures)]
    assert len(urls) == 3
    for url in urls:
        # Without such a name torch.hub would check nothing, and say nothing.
        assert re.fullmatch(r"https://\S+-[0-9a-f]{8,}\.\w+", url), url


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def test_nothing_in_the_program_executes_the_content_of_a_file() -> None:
    files = [p for room in ("data", "engine", "models", "continual", "scripts") for p in (ROOT / room).rglob("*.py")]
    for path in [*files, ROOT / "eval.py"]:
        for call in calls(path):
            call_name, options = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert call_name not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system"), path
            assert not call_name.endswith((".extractall", ".extract", ".unpack_archive")), path
            assert options.get("shell", "False") == "False", path
            if call_name in ("torch.load", "torch.hub.load_state_dict_from_url"):
                assert options["weights_only"] == "True", path
            if call_name == "torch.hub.load_state_dict_from_url":
                assert options["check_hash"] == "True", path
