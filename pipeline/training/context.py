"""What a stage and the loop work on: configuration, runtime, data, and the images that are read once."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from pipeline.config.schema import Config
from pipeline.data.loading.loader import FaceImages
from pipeline.data.loading.order import Order
from pipeline.data.loading.streaming import StreamedFaces
from pipeline.training.runtime import Runtime

CALIBRATION_IMAGES = 256
SHOWN_IMAGES = 64


@dataclass(frozen=True)
class Context:
    config: Config
    runtime: Runtime
    train: FaceImages | StreamedFaces
    held_out: FaceImages

    @cached_property
    def calibration(self) -> list[Tensor]:
        """Micro-batches (m, 3, S, S) in [-1, 1] on which BatchNorm and feature scales are measured: always the same.

        Raises:
            UserError: naming an image that cannot be read.
            Interrupted: by a signal; the images may come from a slow source.
        """
        size = self.config.training.micro_batch_size
        with self.runtime.ranks.signals.waiting():
            return list(self.train.calibration(self.order, -(-CALIBRATION_IMAGES // size) * size).split(size))

    @cached_property
    def shown(self) -> Tensor:
        """(n, 3, S, S) in [-1, 1]: the held-out faces that training shows and measures, `SHOWN_IMAGES` or fewer."""
        return self.held_out.first(SHOWN_IMAGES)

    def read_ahead(self) -> None:
        """Before the first step, read the images that later steps need; raises as `calibration`."""
        _ = self.calibration
        if self.runtime.ranks.is_main:
            _ = self.shown

    @property
    def order(self) -> Order:
        training = self.config.training
        return Order(
            count=len(self.train) if isinstance(self.train, FaceImages) else 1,  # a stream has no length and needs none
            seed=self.config.seed,
            global_batch_size=training.global_batch_size,
            micro_batch_size=training.micro_batch_size,
            rank=self.runtime.ranks.rank,
            world_size=self.runtime.ranks.world_size,
        )
