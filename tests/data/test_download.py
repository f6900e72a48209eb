from __future__ import annotations

import hashlib
import io
import json
import tarfile

import pytest

from data import download
from data.download import MINI, coco_json, load_manifest, main
from data.downloading import fetch, official
from tests.data.server import (
    NETTE,
    VOC,
    Server,
    flags,
    manifest,
    nette_members,
    picture,
    sources,
    tar,
    tree,
    voc_members,
)

FILES = sources()
TOP = "VOCdevkit/VOC2012"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(fetch, "sleep", lambda seconds: None)


@pytest.fixture
def server():
    with Server(dict(FILES)) as running:
        yield running


@pytest.fixture
def run(server, tmp_path):
    """Run the command against the local server with the small name list; returns the exit code."""
    names = tmp_path / "names.json"
    names.write_text(json.dumps(manifest()))

    def command(*extra: str) -> int:
        return main(["--root", str(tmp_path / "data"), "--manifest", str(names), *flags(server), *extra])

    return command


def expected() -> dict[str, bytes]:
    voc, nette, files = voc_members(), nette_members(), {}
    for split, names in {"train": ("2007_000000", "2007_000003"), "val": ("2007_000005",)}.items():
        for name in names:
            files[f"mini_voc_seg/{split}/images/{name}.jpg"] = voc[f"{TOP}/JPEGImages/{name}.jpg"]
            files[f"mini_voc_seg/{split}/masks/{name}.png"] = voc[f"{TOP}/SegmentationClass/{name}.png"]
    for split, paths in {"train": ("train2017", 2), "val": ("val2017", 102)}.items():
        files[f"mini_coco_det/{split}/images/{paths[1]:012d}.jpg"] = FILES[f"/{paths[0]}/{paths[1]:012d}.jpg"]
        files[f"mini_coco_det/{split}/annotations.json"] = coco_json(manifest(), split)
    files["mini_coco_det/train/images/000000000101.jpg"] = FILES["/val2017/000000000101.jpg"]
    for split, name in {
        ("train", "n01440764/n01440764_1000.JPEG"),
        ("train", "n01440764/n01440764_1001.JPEG"),
        ("val", "n03028079/n03028079_1110.JPEG"),
    }:
        files[f"imagenette_160/{split}/{name}"] = nette[f"imagenette2-160/{split}/{name}"]
    return dict(sorted(files.items()))


def test_everything_arrives_and_a_second_call_downloads_nothing(run, server, tmp_path, capsys):
    assert run() == 0
    assert tree(tmp_path / "data") == expected()
    server.log.clear()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.*")}
    assert run() == 0
    assert server.log == []
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert capsys.readouterr().out.count("6 of 6 files in place and intact") == 1


@pytest.mark.parametrize(("cut", "ranges"), [(700, True), (9000, True), (45_000, False)])
def test_cut_connections_do_not_matter(run, server, tmp_path, cut, ranges):
    server.cut, server.ranges = cut, ranges
    if not ranges:
        server.cuts = 3
    assert run() == 0
    assert tree(tmp_path / "data") == expected()


def test_only_the_named_tasks(run, tmp_path, capsys):
    assert run("--tasks", "det") == 0
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"mini_coco_det"}
    assert run("--tasks", "det,boxes") == 2
    error = capsys.readouterr().err
    assert error == "error: --tasks det,boxes: 'boxes' is not a task; choose from seg, det, cls, pretrain\n"


def test_damaged_and_missing_files_are_replaced_and_others_left_alone(run, server, tmp_path):
    assert run() == 0
    root = tmp_path / "data"
    (root / "mini_voc_seg/train/masks/2007_000003.png").write_bytes(b"damaged")
    (root / "imagenette_160/val/n03028079/n03028079_1110.JPEG").unlink()
    (root / "mini_coco_det/val/annotations.json").write_text("{}")
    (root / "mini_coco_det/val/images/000000000102.jpg").write_bytes(b"")
    (root / "mini_coco_det/note.txt").write_text("mine")
    server.log.clear()
    assert run() == 0
    assert tree(root) == expected() | {"mini_coco_det/note.txt": b"mine"}
    assert sorted(path for path, _ in server.log) == [NETTE, "/val2017/000000000102.jpg", VOC]


def test_a_file_that_comes_corrupt_once_is_fetched_again(run, server, tmp_path):
    voc = voc_members()
    voc[f"{TOP}/JPEGImages/2007_000003.jpg"] = picture(999)
    nette = nette_members()
    nette["imagenette2-160/val/n03028079/n03028079_1110.JPEG"] = b"x"
    good, voc_bad = FILES[VOC], tar(voc)
    server.once = {"/train2017/000000000002.jpg": b"x", VOC: voc_bad.ljust(len(good), b"\0")[: len(good)]}
    server.once[NETTE] = tar(nette, "w:gz")
    assert run() == 0
    assert tree(tmp_path / "data") == expected()
    assert [span is None for span in server.asked(VOC)] == [True, False]  # again only from the damaged member on


@pytest.mark.parametrize("task", ["det", "seg", "cls"])
def test_a_file_that_stays_corrupt_is_named_and_can_be_allowed(run, server, tmp_path, capsys, task):
    voc, nette, other = voc_members(), nette_members(), picture(999)
    voc_image = voc[f"{TOP}/JPEGImages/2007_000003.jpg"]
    voc[f"{TOP}/JPEGImages/2007_000003.jpg"] = other
    nette["imagenette2-160/train/n01440764/n01440764_1001.JPEG"] = other
    server.files |= {"/train2017/000000000002.jpg": other, VOC: tar(voc), NETTE: tar(nette, "w:gz")}
    name, wanted = {
        "det": ("mini_coco_det/train/images/000000000002.jpg", FILES["/train2017/000000000002.jpg"]),
        "seg": ("mini_voc_seg/train/images/2007_000003.jpg", voc_image),
        "cls": ("imagenette_160/train/n01440764/n01440764_1001.JPEG", picture(1001)),
    }[task]
    assert run("--tasks", task) == 2
    error = capsys.readouterr().err
    sums = [hashlib.sha256(content).hexdigest() for content in (wanted, other)]
    assert error.startswith(f"error: {name}: expected sha256 {sums[0]}, got {sums[1]}, twice, from {server.url}")
    assert "--allow-changed" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "data" / name).exists()
    assert run("--tasks", task, "--allow-changed") == 0
    assert (tmp_path / "data" / name).read_bytes() == other


def test_a_new_process_goes_on_after_the_last_file_saved(run, server, tmp_path, monkeypatch, capsys):
    save, count = official.Store.save, []

    def stop_at_fourth(self, item, content):
        if len(count) == 4:
            raise KeyboardInterrupt
        count.append(item)
        return save(self, item, content)

    with monkeypatch.context() as patch:
        patch.setattr(official.Store, "save", stop_at_fourth)
        assert run("--tasks", "seg") == 130
    assert capsys.readouterr().err == "\nstopped; what is saved is kept, and the same command resumes\n"
    assert sorted(path.name for path in (tmp_path / "data").rglob("*.*") if "mini" in str(path)) == [
        "2007_000000.jpg", "2007_000000.png", "2007_000003.jpg", "2007_000005.jpg"]  # fmt: skip
    server.log.clear()
    assert run("--tasks", "seg") == 0
    with tarfile.open(fileobj=io.BytesIO(FILES[VOC])) as archive:
        last = archive.getmember(f"{TOP}/SegmentationClass/2007_000001.png").offset
    assert server.asked(VOC) == [f"bytes={last}-"]
    assert tree(tmp_path / "data") == {k: v for k, v in expected().items() if "voc" in k}


@pytest.mark.parametrize("offset", [1234, 10**9])
def test_a_stale_offset_in_the_tar_does_no_harm(run, server, tmp_path, offset):
    note = tmp_path / "data" / ".download" / "voc.json"
    note.parent.mkdir(parents=True)
    left = [f"JPEGImages/2007_00000{i}.jpg" for i in (0, 3, 5)]
    left += [f"SegmentationClass/2007_00000{i}.png" for i in (0, 3, 5)]
    note.write_text(json.dumps({"url": server.url + VOC, "offset": offset, "left": left}))
    assert run("--tasks", "seg") == 0
    assert tree(tmp_path / "data") == {k: v for k, v in expected().items() if "voc" in k}


def test_the_tar_is_left_as_soon_as_all_is_there(run, server, tmp_path):
    members = voc_members() | {f"{TOP}/SegmentationObject/{i}.png": bytes(1_000_000) for i in range(60)}
    server.files[VOC] = tar(members)
    server.cut = 5_000_000  # the next request would show that reading went on
    assert run("--tasks", "seg") == 0
    assert len(server.asked(VOC)) == 1


@pytest.mark.parametrize(("path", "task"), [("/train2017/000000000002.jpg", "det"), (VOC, "seg"), (NETTE, "cls")])
def test_404_names_the_address(run, server, capsys, path, task):
    del server.files[path]
    assert run("--tasks", task) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {server.url}{path}: the server answers 404 Not Found; check the address")
    assert error.count("\n") == 1


def _special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        (tarfile.TarInfo("../../evil.txt"), "'../../evil.txt' leads out of its folder"),
        (tarfile.TarInfo("/etc/evil"), "'/etc/evil' leads out of its folder"),
        (_special(f"{TOP}/JPEGImages/2007_000000.jpg", tarfile.SYMTYPE), "is a link or a device"),
        (_special(f"{TOP}/JPEGImages/2007_000000.jpg", tarfile.LNKTYPE), "is a link or a device"),
        (_special(f"{TOP}/pipe", tarfile.FIFOTYPE), "is a link or a device"),
    ],
)
@pytest.mark.parametrize("task", ["seg", "cls"])
def test_unsafe_members_are_refused(run, server, tmp_path, capsys, member, sentence, task):
    server.files |= {VOC: tar({member.name: member}), NETTE: tar({member.name: member}, "w:gz")}
    assert run("--tasks", task) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "evil.txt").exists()
    assert not any(path.suffix in (".jpg", ".txt") for path in (tmp_path / "data").rglob("*"))


def test_bombs_are_refused(run, server, monkeypatch, capsys):
    monkeypatch.setattr(official, "IMAGE_LIMIT", 500)
    assert run("--tasks", "seg") == 2
    assert "bytes, limit 500" in capsys.readouterr().err
    monkeypatch.setattr(official, "UNPACKED_LIMIT", 600)
    assert run("--tasks", "cls") == 2
    assert "unpacks to more than 600 bytes" in capsys.readouterr().err
    monkeypatch.setattr(official, "ARCHIVE_LIMIT", 1000)
    assert run("--tasks", "cls") == 2
    assert "longer than 1000 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(("path", "task"), [(VOC, "seg"), (NETTE, "cls")])
def test_a_page_instead_of_an_archive_and_an_archive_without_the_files(run, server, capsys, path, task):
    server.files[path] = b"<html>please log in</html>" * 100
    assert run("--tasks", task) == 2
    assert "not a readable" in capsys.readouterr().err
    server.files[path] = tar({"a/b/c/other.txt": b"x"}, "w:gz" if task == "cls" else "w")
    assert run("--tasks", task) == 2
    assert "wanted files are not in it, first" in capsys.readouterr().err
    server.files[path] = FILES[path]
    assert run("--tasks", task) == 0


def test_root_that_cannot_be_written(run, tmp_path, capsys):
    (tmp_path / "data").write_text("a file")
    assert run() == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'data'}: cannot write there (")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not a readable name list"),
        ("{}", "not a name list"),
        ('{"format": 1, "det": {"train": {"../../x.jpg": {}}}}', "'../../x.jpg' is no det name"),
        ('{"format": 1, "cls": {"../x": {}}}', "'../x' is no cls name"),
        ('{"format": 1, "det": []}', '"det" is no object of splits; give another'),
        ('{"format": 1, "cls": {"train": ["x"]}}', '"cls" "train" is no object of names'),
        (
            '{"format": 1, "seg": {"train": {"2007_000001": {"image": null}}}}',
            "of seg train needs image, mask",
        ),
        ('{"format": 1, "cls": {"val": {"n01440764/a.JPEG": null}}}', "'n01440764/a.JPEG' of cls val needs sha256"),
        ('{"format": 1, "det": {"train": {}}}', '"det" needs a list of "categories"'),
    ],
)
def test_bad_name_lists(run, tmp_path, capsys, text, sentence):
    (tmp_path / "names.json").write_text(text)
    assert run() == 2
    assert sentence.strip("'") in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_the_committed_list_gives_the_annotation_files_bit_by_bit():
    names = load_manifest(MINI)
    assert MINI.stat().st_size < 200_000
    for task in ("det", "seg", "cls"):
        assert {split: len(rows) for split, rows in names[task].items()} == {"train": 240, "val": 60}
        assert not set(names[task]["train"]) & set(names[task]["val"])
    sums = {split: hashlib.sha256(coco_json(names, split)).hexdigest() for split in ("train", "val")}
    assert sums == {
        "train": "d3fe7ca73c624d264950efe27ad94103b3c561086c55b43ea86c40b6abb14341",
        "val": "ee98acfb4803c01f340a7c2adab14efb9760267a8cda3f2fb2945bf82a9f21ab",
    }
    assert len({name.split("/")[0] for name in names["cls"]["val"]}) == 10


def test_annotations_are_coco():
    truth = json.loads(coco_json(manifest(), "train"))
    assert truth["images"] == [
        {"id": 2, "file_name": "000000000002.jpg", "width": 24, "height": 24,
         "coco_url": "http://images.cocodataset.org/train2017/000000000002.jpg"},
        {"id": 101, "file_name": "000000000101.jpg", "width": 24, "height": 24},
    ]  # fmt: skip
    box = {"category_id": 1, "bbox": [1.0, 2.0, 3.5, 4.0], "area": 14.0, "iscrowd": 0}
    assert truth["annotations"] == [{"id": 1, "image_id": 2, **box}, {"id": 2, "image_id": 101, **box}]


@pytest.fixture
def archives(server, monkeypatch) -> dict[str, bytes]:
    """The two archives of stage 0 on the server, their sums known to the program."""
    found = {"tiny-imagenet-200.zip": b"tiny" * 50_000, "imagenette2-160.tgz": FILES[NETTE]}
    server.files["/tiny-imagenet-200.zip"] = found["tiny-imagenet-200.zip"]
    for name, content in zip(("TINY_IMAGENET_MD5", "IMAGENETTE_MD5"), found.values()):
        monkeypatch.setattr(download, name, hashlib.md5(content).hexdigest())
    return found


def test_the_archives_of_stage_0_arrive_whole_over_a_bad_line(run, server, archives, tmp_path, capsys):
    server.cut = 30_000
    tiny = f"--tiny-imagenet-url={server.url}/tiny-imagenet-200.zip"
    assert run("--tasks", "pretrain", tiny) == 0
    assert tree(tmp_path / "data") == {f"pretrain/{name}": content for name, content in sorted(archives.items())}
    server.log.clear()
    assert run("--tasks", "pretrain", tiny) == 0
    assert server.log == []
    assert "in place and intact" in capsys.readouterr().out


def test_an_archive_of_stage_0_with_another_sum_is_refused(run, server, archives, tmp_path, capsys):
    server.files["/tiny-imagenet-200.zip"] = b"something else"
    tiny = f"--tiny-imagenet-url={server.url}/tiny-imagenet-200.zip"
    assert run("--tasks", "pretrain", tiny) == 2
    assert "tiny-imagenet-200.zip: expected md5 " in capsys.readouterr().err
    assert tree(tmp_path / "data") == {}
    assert run("--tasks", "pretrain", tiny, "--allow-changed") == 0
    assert tree(tmp_path / "data")["pretrain/tiny-imagenet-200.zip"] == b"something else"
