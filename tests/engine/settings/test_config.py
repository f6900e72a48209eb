"""Where a setting comes from, and what is reported when one is wrong."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import docstring_parser
import pytest
import yaml

from data.transforms import Augment
from engine.settings.config import Config, to_dict
from engine.settings.options import build_parser, key_types, to_config
from engine.storage.errors import UserError
from models.criterion import LossConfig
from models.onehead import ModelConfig

PARSER = build_parser("python -m engine.train", "Train.")


def parse(*arguments: str) -> Config:
    return to_config(PARSER, PARSER.parse_args(arguments))


def message(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def test_without_arguments_every_default_is_that_of_the_dataclasses() -> None:
    assert parse() == Config()
    assert Config().model == ModelConfig()
    assert Config().loss == LossConfig()
    assert Config().data.augment == Augment()


def test_the_default_recipe_is_what_the_program_does_unasked() -> None:
    assert parse("--config", "configs/default.yaml") == Config()


def test_the_parser_reads_no_file_that_was_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.yaml", "defaults.yaml", "onehead.yaml"):
        (tmp_path / name).write_text("seed: 9\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEED", "9")
    assert parse() == Config()


def test_the_command_line_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 7\noptim: {lr: 1e-2, epochs: {det: 3}}\n")
    config = parse("--config", path, "--optim.lr", "0.5")
    assert (config.seed, config.optim.lr, config.optim.epochs.det) == (7, 0.5, 3)
    assert config.optim.epochs.seg == Config().optim.epochs.seg
    assert config.optim.batch == Config().optim.batch
    assert parse("--config", path).optim.lr == 0.01


def test_the_command_line_beats_the_file_in_either_order(tmp_path: Path) -> None:
    path = write(tmp_path, "optim: {lr: 0.01}\n")
    assert parse("--optim.lr", "0.5", f"--config={path}").optim.lr == 0.5
    assert parse("--optim.lr", "0.5", "--config", path, "--seed", "3").optim.lr == 0.5


@pytest.mark.parametrize(("text", "key"), [("data:\n  size: null", "data.size"), ("order: null", "order")])
def test_nothing_where_something_is_needed_is_refused(text: str, key: str, tmp_path: Path) -> None:
    assert message("--config", write(tmp_path, text)).startswith(f"{key} is null: it must be a ")


def test_of_two_files_the_last_wins(tmp_path: Path) -> None:
    first, second = write(tmp_path, "seed: 1\nname: a\n"), tmp_path / "second.yaml"
    second.write_text("seed: 2\n")
    config = parse("--config", first, "--config", str(second))
    assert (config.seed, config.name) == (2, "a")


def test_a_dotted_key_in_a_file_is_the_nested_one(tmp_path: Path) -> None:
    assert parse("--config", write(tmp_path, "data.size: 512\n")).data.size == 512


def test_a_configuration_survives_yaml(tmp_path: Path) -> None:
    changed = (
        "--order [det,seg] --data.workers 3 --data.augment.scale [0.7,1.1] --init weights/a.pt --optim.lr 3e-4 "
        "--data.holdout true --track.wandb offline --precision bf16 --name 3"
    )
    for arguments in ([], changed.split()):
        config = parse(*arguments)
        path = write(tmp_path, yaml.safe_dump(to_dict(config), sort_keys=False))
        again = parse("--config", path)
        assert again == config
        assert to_dict(again) == to_dict(config)
        assert yaml.safe_load(Path(path).read_text()) == to_dict(config)


def test_no_setting_is_left_out_where_another_thread_parses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    parse_source, asked = docstring_parser.parse_from_object, []

    def fails_at_first(component: Any, **options: Any) -> Any:
        asked.append(component)
        if len(asked) == 2:
            raise SystemError("AST constructor recursion depth mismatch")  # what Python 3.11 raises then
        return parse_source(component, **options)

    monkeypatch.setattr(docstring_parser, "parse_from_object", fails_at_first)
    assert {"data.size", "seed"} <= {action.dest for action in build_parser("test", "")._actions}
    assert asked.count(Config) == 2
    monkeypatch.setattr(docstring_parser, "parse_from_object", Mock(side_effect=SystemError))
    with pytest.raises(RuntimeError, match="finds no settings in the source"):
        build_parser("test", "")


def test_every_setting_is_in_the_types_and_in_the_dictionary() -> None:
    assert set(key_types(Config)) == set(flat(to_dict(Config())))


@pytest.mark.parametrize("key", key_types(Config))
def test_help_shows_every_setting_with_its_default(key: str) -> None:
    default: Any = Config()
    for part in key.split("."):
        default = getattr(default, part)
    described = entry(key)
    shown = "null" if default is None else str(default)
    assert f"default: {shown})".replace(" ", "") in described.replace(" ", "")  # a long one is broken at a hyphen


@pytest.mark.parametrize("key", [k for k in key_types(Config) if not k.startswith("data.augment.")])
def test_help_describes_every_setting(key: str) -> None:
    before_type = entry(key).split("(type:")[0]
    assert len(before_type.split(" ")) > 4, before_type


def entry(key: str) -> str:
    """The text of one setting in --help, without the usage above, up to the next setting."""
    text = re.sub(r", --\S+\+ \[ITEM,...\]", "", " ".join(PARSER.format_help().split()))
    settings = text[text.index("One run:") :]
    return settings[settings.index(f"--{key} ") :].split(" --")[0]


def test_help_has_a_group_for_every_section() -> None:
    text = PARSER.format_help()
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.default_factory):
            title = (section.default_factory.__doc__ or "").splitlines()[0].rstrip(".")
            assert f"\n{title}:\n" in text
            assert f"  --{section.name} " not in text


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("--optim.lrr", "optim.lr"),
        ("--modle.dim", "model.dim"),
        ("--lr", "optim.lr"),
        ("--data_root", "data.root"),
        ("--optim.epochs.sge", "optim.epochs.seg"),
        ("--data.augment.scal", "data.augment.scale"),
        ("--see", "seed"),
    ],
)
@pytest.mark.parametrize("form", ["{} 1", "{}=1"])
def test_an_unknown_option_names_the_nearest(given: str, nearest: str, form: str) -> None:
    name = given.removeprefix("--")
    assert message(*form.format(given).split()) == f"{given}: unknown key {name!r}; did you mean {nearest}?"


def test_an_unknown_option_that_resembles_nothing_points_to_help() -> None:
    assert message("--zzz", "1") == "--zzz: unknown key 'zzz'; see --help for all keys"


def test_an_unknown_key_of_a_section_that_resembles_none_names_those_there() -> None:
    text = message("--optim.learning_speed", "1")
    assert text.startswith("--optim.learning_speed: unknown key 'optim.learning_speed'; optim has optim.backbone_lr, ")
    assert " optim.lr, " in text


@pytest.mark.parametrize(
    ("text", "line", "name", "nearest"),
    [
        ("optimm:\n  lr: 1\n", 1, "optimm", "optim"),
        ("seed: 1\ndata: {sise: 320}\n", 2, "data.sise", "data.size"),
        ("data:\n  size: 320\n  augment:\n    flp: 0\n", 4, "data.augment.flp", "data.augment.flip"),
        ("modle.dim: 64\n", 1, "modle.dim", "model.dim"),
        ("sed: 1\n", 1, "sed", "seed"),
        ("loss.l1.x: 1\n", 1, "loss.l1.x", "loss.l1"),
    ],
)
def test_an_unknown_key_in_a_file_names_line_and_nearest_key(
    tmp_path: Path, text: str, line: int, name: str, nearest: str
) -> None:
    path = write(tmp_path, text)
    assert message("--config", path) == f"{path}, line {line}: unknown key {name!r}; did you mean {nearest}?"


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("optim.lr", "fast", "a number"),
        ("optim.lr", "nan", "a number"),
        ("optim.batch", "2.5", "a whole number"),
        ("data.holdout", "maybe", "true or false"),
        ("data.workers", "many", "a whole number or null"),
        ("precision", "fp8", "one of auto, fp32, bf16, fp16"),
        ("data.augment.scale", "[0.5]", "a list in brackets: a number, a number"),
    ],
)
def test_a_wrong_type_names_key_value_and_what_is_allowed(tmp_path: Path, key: str, value: str, kind: str) -> None:
    assert message(f"--{key}", value) == f"{key} is {value}: it must be {kind}"
    path = write(tmp_path, f"# a comment\n{key}: {value}\n")
    assert message("--config", path) == f"{key} is {value} ({path}, line 2): it must be {kind}"


def test_an_unknown_stage_in_the_order_is_refused() -> None:
    assert message("--order", "[seg,pose]").startswith("order is pose: it must be a list in brackets, each entry one")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "", "# nothing\n", "3\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    assert message("--config", path) == f"{path}: holds no settings; write lines such as `seed: 1`"


@pytest.mark.parametrize(("text", "line"), [("data: {size: [\n", 2), ("seed: 1\n\tname: a\n", 2), ("a: b: c\n", 1)])
def test_broken_yaml_names_the_line(tmp_path: Path, text: str, line: int) -> None:
    path = write(tmp_path, text)
    assert message("--config", path).startswith(f"{path}, line {line}: not valid YAML (")


def test_a_binary_file_is_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"PK\x03\x04\xff\xfe\x00\x80")
    assert message("--config", str(path)).startswith(f"{path}: not valid YAML")


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = write(tmp_path, f"seed: !!python/object/apply:os.system ['touch {marker}']\n")
    message("--config", path)
    assert not marker.exists()


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "no.yaml"
    remedy = "give the path of a YAML file"
    assert message("--config", str(missing)) == f"--config {missing}: No such file or directory; {remedy}"
    assert message("--config", str(tmp_path)) == f"--config {tmp_path}: Is a directory; {remedy}"


@pytest.mark.parametrize(
    ("text", "name", "line"), [("seed: 1\nseed: 2\n", "seed", 2), ("data: {size: 64}\nname: a\ndata: {}\n", "data", 3)]
)
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, text: str, name: str, line: int) -> None:
    path = write(tmp_path, text)
    expected = f"{path}, line {line}: {name} is there twice, first in line 1; keep one"
    assert message("--config", path) == expected


@pytest.mark.parametrize("value", ["3", "fast", ""])
def test_a_section_needs_keys(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, f"optim: {value}\n")
    assert message("--config", path) == f"{path}, line 1: optim is a section; write `key: value` lines below it"
    assert message("--data", "sets").startswith("--data: a section, not a setting; it holds data.augment.aspect,")


@pytest.mark.parametrize("size", [300, 16, 321])
def test_the_size_is_a_multiple_of_32(size: int) -> None:
    assert message("--data.size", str(size)) == f"data.size is {size}: it must be a multiple of 32, such as 320 or 512"


@pytest.mark.parametrize("key", ["data.size", "optim.batch", "optim.epochs.seg", "track.evals", "model.heads"])
@pytest.mark.parametrize("value", ["0", "-32"])
def test_counts_are_at_least_one(key: str, value: str) -> None:
    assert message(f"--{key}", value) == f"{key} is {value}: it must be at least 1"


@pytest.mark.parametrize("key", ["optim.lr", "loss.l1", "continual.distill", "data.workers", "seed"])
def test_nothing_is_negative(key: str) -> None:
    shown = "-1.0" if key_types(Config)[key] is float else "-1"
    assert message(f"--{key}", "-1") == f"{key} is {shown}: it must be at least 0"
    parse(f"--{key}", "0")


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("data.augment.crop", "0.0", "at least 0.01"),
        ("data.augment.scale", "[0.0, 1.0]", "at least 0.01"),
        ("data.augment.aspect", "0.5", "at least 1"),
        ("loss.smoothing", "1.5", "at most 1"),
        ("optim.ema", "1.5", "at most 1"),
    ],
)
def test_values_without_a_meaning_are_refused(key: str, value: str, bound: str) -> None:
    shown = value.replace("[", "(").replace("]", ")")
    assert message(f"--{key}", value) == f"{key} is {shown}: it must be {bound}"


@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_numbers_are_finite(value: str) -> None:
    assert message("--optim.lr", value) == f"optim.lr is {value[1:]}: it must be a finite number"


@pytest.mark.parametrize("order", ["[seg,seg]", "[]"])
def test_each_stage_is_named_once(order: str) -> None:
    assert "name each stage once" in message("--order", order)


def test_an_expert_has_to_be_named() -> None:
    assert message("--continual.expert", "5").startswith("continual.expert is 5.0: name a checkpoint as")


def test_a_replay_buffer_is_at_most_what_the_rules_allow() -> None:
    assert message("--continual.replay", "11").startswith("continual.replay is 11: ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["stray"], "stray: belongs to no option; settings are given as --section.key value"),
        (["--optim.lr"], "--optim.lr: expected one argument"),
        (["--config"], "--config: expected one argument"),
    ],
)
def test_an_incomplete_command_line_is_one_sentence(arguments: list[str], text: str) -> None:
    assert message(*arguments) == text


def nested_aliases() -> str:
    """A few lines that stand for ten thousand million words."""
    lines = ["a0: &a0 [lol, lol]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join([*lines, "order: *a9"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (nested_aliases(), "is an alias; write out what it stands for"),
        ("order: " + "[" * 100_000, "nested too deeply; write lines such as `seed: 1`"),
        ("order: " + "[" * 40 + "]" * 40 + "\n" + "- " * 20_000, "not valid YAML"),
        ("- " * 20_000, "nested too deeply; write lines such as `seed: 1`"),
        ("#" * 1_000_001, "larger than 1000000 bytes; give the path of a YAML file of settings"),
    ],
    ids=["aliases", "brackets", "mixed", "dashes", "size"],
)
def test_files_made_to_exhaust_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(sentence)):
        build_parser("", "").parse_args(["--config", str(tmp_path / "c.yaml")])
