from __future__ import annotations

import pytest
import torch

from engine.storage.device import pick_precision, training_precision
from engine.storage.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_does_not_train_in_float16() -> None:
    assert training_precision("auto", CPU) == pick_precision(CPU) != "fp16"
    assert training_precision("bf16", CPU) == "bf16"
    assert training_precision("fp16", GPU) == "fp16"
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        training_precision("fp16", CPU)
