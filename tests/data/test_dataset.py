from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.dataset import TaskDataset, sample_generator
from data.errors import DataError
from data.transforms import Augment
from data.types import Record, Sample, TaskSet

RNG = np.random.default_rng(0)

# Of use, crowd, unknown class, over the right edge, without width.
BOXES = [[6.0, 4, 36, 24], [0, 0, 30, 30], [10, 10, 50, 30], [30, 20, 90, 35], [5, 5, 5, 20]]


def write_image(path: Path, width: int = 60, height: int = 40, mode: str = "RGB") -> Path:
    shape = (height, width) if mode == "L" else (height, width, 3)
    Image.fromarray(RNG.integers(0, 256, shape, np.uint8)).save(path)
    return path


def detection(folder: Path, count: int = 3) -> TaskSet:
    records = tuple(
        Record(
            write_image(folder / f"{i}.png"),
            torch.tensor(BOXES),
            torch.tensor([0, 1, 2, 1, 0]),
            torch.tensor([False, True, False, False, False]),
            torch.ones(5),
        )
        for i in range(count)
    )
    return TaskSet("det", "train", "drawn", ("cat", "dog"), records, unknown=("yak",))


def segmentation(folder: Path, values: np.ndarray) -> TaskSet:
    image = write_image(folder / "a.jpg", values.shape[1], values.shape[0])
    Image.fromarray(values.astype(np.uint8)).save(folder / "a.png")
    return TaskSet("seg", "train", "drawn", ("background", "cat"), (Record(image, mask=folder / "a.png"),))


def read_all(dataset: TaskDataset) -> None:
    for index in range(len(dataset)):
        dataset[index]


def equal(a: Sample, b: Sample) -> bool:
    same = torch.equal(a.image, b.image) and a.index == b.index and a.label == b.label
    for x, y in ((a.boxes, b.boxes), (a.labels, b.labels), (a.mask, b.mask)):
        same = same and (x is None) == (y is None) and (x is None or (y is not None and torch.equal(x, y)))
    return same


def test_crowd_unknown_and_empty_boxes_are_left_out_and_the_rest_clipped(tmp_path: Path):
    sample = TaskDataset(detection(tmp_path), 30, None)[0]
    assert sample.boxes is not None
    assert sample.labels is not None
    assert sample.labels.tolist() == [0, 1]
    expected = torch.tensor([[21 / 60, 14 / 40, 30 / 60, 20 / 40], [45 / 60, 27.5 / 40, 30 / 60, 15 / 40]])
    torch.testing.assert_close(sample.boxes, expected)


def test_evaluation_pixels_come_from_one_resize(tmp_path: Path):
    """What evaluation sees must not depend on how training images are kept in memory."""
    task_set = detection(tmp_path)
    images = [TaskDataset(task_set, 30, None, cache_side=side)[0].image for side in (None, 31, 500)]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
    direct = Image.open(tmp_path / "0.png").resize((30, 30), Image.Resampling.BILINEAR)
    reference = torch.from_numpy(np.asarray(direct).copy()).permute(2, 0, 1) / 255
    assert (images[0] - reference).abs().max() <= 2 / 255


def test_segmentation_sample_keeps_classes_and_void(tmp_path: Path):
    values = np.zeros((40, 60), np.uint8)
    values[10:30, 15:45] = 1
    values[:, 59] = 255
    values[:, 58] = 255
    sample = TaskDataset(segmentation(tmp_path, values), 20, None)[0]
    assert sample.mask is not None
    assert sample.mask.shape == (20, 20)
    assert sample.mask[5:15, 5:15].unique().tolist() == [1]
    assert int((sample.mask == 1).sum()) == 100
    assert sample.mask[:, 19].unique().tolist() == [255]
    assert sample.boxes is None
    assert sample.label is None


def test_greyscale_file_becomes_three_equal_channels(tmp_path: Path):
    record = Record(write_image(tmp_path / "grey.png", mode="L"), label=1)
    sample = TaskDataset(TaskSet("cls", "val", "drawn", ("a", "b"), (record,)), 24, None)[0]
    assert sample.image.shape == (3, 24, 24)
    assert torch.equal(sample.image[0], sample.image[1])
    assert torch.equal(sample.image[0], sample.image[2])
    assert sample.label == 1


def test_sample_depends_on_seed_epoch_and_index_only(tmp_path: Path):
    task_set = detection(tmp_path)
    one, two = (TaskDataset(task_set, 30, Augment(), seed=3) for _ in range(2))
    first = one[0]
    _ = one[1], one[2], one[2]  # other reads in between change nothing
    assert equal(first, one[0])
    assert equal(first, two[0])
    one.set_epoch(1)
    assert not equal(first, one[0])
    two.set_epoch(1)
    assert equal(one[0], two[0])
    one.set_epoch(0)
    assert equal(first, one[0])
    assert not equal(first, TaskDataset(task_set, 30, Augment(), seed=4)[0])


def test_generators_differ_wherever_a_number_differs():
    keys = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 11), (0, 1, 1), (0, 11, 0)]
    firsts = {float(torch.rand((), generator=sample_generator(*key), dtype=torch.float64)) for key in keys}
    assert len(firsts) == len(keys)
    # Fixed for good: another value here would change every recorded run.
    assert sample_generator(0, 0, 0).initial_seed() == 4808561972376111626


def test_running_workers_see_the_epoch(tmp_path: Path):
    dataset = TaskDataset(detection(tmp_path), 30, Augment())
    read_all(dataset)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        for index, sample in enumerate(loader):
            assert equal(sample, dataset[index])


@pytest.mark.parametrize("augment", [None, Augment()])
def test_second_read_does_not_touch_the_disk(tmp_path: Path, augment: Augment | None):
    task_set = detection(tmp_path)
    dataset = TaskDataset(task_set, 30, augment)
    first = dataset[0]
    read_all(dataset)
    for record in task_set.records:
        record.image.unlink()
    assert equal(first, dataset[0])
    assert dataset[2].index == 2
    assert len(dataset) == 3


def test_memory_is_bounded_by_cache_side(tmp_path: Path):
    record = Record(write_image(tmp_path / "large.png", 400, 300), label=0)
    task_set = TaskSet("cls", "train", "drawn", ("a",), (record,))

    def kept(cache_side: int | None) -> tuple[int, ...]:
        dataset = TaskDataset(task_set, 100, Augment(), cache_side=cache_side)
        read_all(dataset)
        picture = dataset._pictures[0]
        assert picture is not None
        assert picture.image.dtype == torch.uint8
        return tuple(picture.image.shape)

    assert kept(None) == (3, 112, 150)
    assert kept(80) == (3, 60, 80)
    assert kept(1000) == (3, 300, 400)  # never enlarged


def test_boxes_shrink_with_the_kept_image(tmp_path: Path):
    neutral = Augment(scale=(1, 1), aspect=1, flip=0, color=0, grey=0)
    task_set = detection(tmp_path)
    kept, plain = TaskDataset(task_set, 30, neutral, cache_side=33)[0], TaskDataset(task_set, 30, None)[0]
    torch.testing.assert_close(kept.boxes, plain.boxes)


def test_broken_image_names_the_file(tmp_path: Path):
    path = write_image(tmp_path / "cut.png")
    path.write_bytes(path.read_bytes()[:500])
    dataset = TaskDataset(TaskSet("cls", "train", "drawn", ("a",), (Record(path, label=0),)), 24, Augment())
    with pytest.raises(DataError, match=r"cut\.png"):
        dataset[0]


def test_mask_of_another_size_is_refused(tmp_path: Path):
    task_set = segmentation(tmp_path, np.zeros((40, 60), np.uint8))
    Image.fromarray(np.zeros((60, 40), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png"):
        _ = TaskDataset(task_set, 20, None)[0]


def test_mosaics_show_several_images_and_follow_seed_and_epoch(tmp_path: Path):
    task_set = detection(tmp_path)
    plain = TaskDataset(task_set, 30, Augment(mosaic=0.0), seed=1)
    always = TaskDataset(task_set, 30, Augment(mosaic=1.0, scale=(1.0, 1.0), aspect=1.0), seed=1)
    assert max(len(plain[i].labels) for i in range(3)) <= 2
    assert max(len(always[i].labels) for i in range(3)) > 2
    again = TaskDataset(task_set, 30, Augment(mosaic=1.0, scale=(1.0, 1.0), aspect=1.0), seed=1)
    assert all(equal(always[i], again[i]) for i in (2, 0, 1))
    before = always[0]
    always.set_epoch(1)
    assert not equal(before, always[0])


def test_classification_images_are_never_composed(tmp_path: Path):
    record = Record(write_image(tmp_path / "a.png"), label=1)
    task_set = TaskSet("cls", "train", "drawn", ("cat", "dog"), (record,))
    sample = TaskDataset(task_set, 30, Augment(mosaic=1.0))[0]
    assert sample.label == 1
