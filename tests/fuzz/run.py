"""A coverage-guided fuzz run in a process of its own: `python -m tests.fuzz.run INPUTS FOLDER [SEED]`.

atheris (libFuzzer) sees which lines of our readers, Pillow's Python parts, PyYAML and torch's restricted unpickler an
input reaches, and goes on from inputs that reach new ones. The first byte of an input chooses the target. An input is
a find when it raises anything but a refusal, takes longer than 30 seconds, or more than 4 GB of memory.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "yaml"]):
    for name in ("PIL.Image", "PIL.ImageFile", "yaml"):
        importlib.import_module(name)
# What is imported under the hook is compiled anew, which takes minutes for large packages: those come before ours.
for name in ("accelerate", "jsonargparse", "scipy.optimize", "timm.utils", "torch", "torchvision.transforms.v2"):
    importlib.import_module(name)
with atheris.instrument_imports(include=["data", "engine", "torch._weights_only_unpickler"]):
    importlib.reload(sys.modules["torch._weights_only_unpickler"])
    from tests.fuzz.targets import REFUSALS, TARGETS, seeds


def main(inputs: int, folder: Path, seed: int = 1) -> None:
    """Try as many inputs, then end the process: with code 0 if none was a find."""
    corpus, work = folder / "corpus", folder / "work"
    corpus.mkdir(parents=True)
    (folder / "seeds").mkdir()
    for number, (target, content) in enumerate(seeds(folder / "seeds")):
        (corpus / str(number)).write_bytes(bytes([target]) + content)
    count: Counter[str] = Counter()

    def one(data: bytes) -> None:
        target = TARGETS[data[0] % len(TARGETS) if data else 0]
        work.mkdir()
        try:
            target(data[1:], work)
            count[f"{target.__name__} accepted"] += 1
        except REFUSALS:
            count[f"{target.__name__} refused"] += 1
        finally:
            shutil.rmtree(work)
            if count.total() % 100 == 0:
                (folder / "count.txt").write_text("\n".join(f"{k}: {v}" for k, v in sorted(count.items())))

    options = f"-runs={inputs} -seed={seed} -timeout=30 -rss_limit_mb=4096 -max_len=20000 -artifact_prefix={folder}/ "
    atheris.Setup([sys.argv[0], *options.split(), str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
