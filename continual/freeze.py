"""Freezing: a reference row, in which only the new tasks' own rows of the projection learn.

With batch-norm statistics kept (continual.freeze_statistics later or always), outputs of old tasks stay as they are, to
the bit, while an image's label is learnt. New boxes change a little: they choose the object queries, which class
queries read. Statistics that follow the new images change everything.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from continual.base import Remedy, Stage, own_weights


class Freeze(Remedy):
    """From the second stage on, shared weights and those of old tasks stay as they are; statistics may move."""

    def before_stage(self, stage: Stage) -> None:
        """Switch gradients off; parts of a parameter by a mask on its gradient."""
        if not stage.old or stage.model is None:
            return
        own = own_weights(stage.model, stage.tasks)
        for name, p in stage.model.named_parameters():
            if name in own and own[name].any():
                p.register_hook(only(own[name]))
            else:
                p.requires_grad_(False)


def only(mask: Tensor) -> Callable[[Tensor], Tensor]:
    """A hook that lets a gradient through where the mask is True."""
    return lambda gradient: gradient * mask
