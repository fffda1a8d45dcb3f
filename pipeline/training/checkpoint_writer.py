"""Checkpoints written beside training: a step that saves waits only for the copy to host memory."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.training import checkpoint
from pipeline.training.context import Context
from pipeline.training.stage import Stage


class CheckpointWriter:
    """The checkpoints of a stage. Every rank has one; the main rank writes, one at a time, in a thread of its own."""

    def __init__(self, stage: Stage, context: Context, step: int) -> None:
        self.stage, self.context = stage, context
        self.saved = step
        """The step of the newest checkpoint, 0 if there is none."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int) -> None:
        """Begin to write the weights as they are, once the last write is done. With `asynchronous_saves` off, finish.

        Raises:
            UserError, StoppedElsewhere: as `finish`.
        """
        # `exception` waits; if the last write failed, this one is left out: `failure` or `finish` tells.
        if self.context.runtime.ranks.is_main and (self._writing is None or self._writing.exception() is None):
            self._writing = self._thread.submit(self._write, step, *self._state(step))
        if not self.context.config.tracking.asynchronous_saves:
            self.finish()
        self.saved = step

    @property
    def failure(self) -> Exception | None:
        """Why the last write failed, told once, for the ranks' next agreement. A bug's error is raised."""
        if self._writing is None or not self._writing.done():
            return None
        try:
            self._finish()
        except (UserError, OSError) as error:
            return error
        return None

    def finish(self) -> None:
        """Wait until all is written. Every rank calls it, and all stop at a failure.

        Raises:
            UserError: what it failed with, on the main rank.
            StoppedElsewhere: then, on the others.
        """
        self.context.runtime.ranks.on_main(self._finish)

    def close(self) -> None:
        """Wait for what is being written, whether or not it fails."""
        self._thread.shutdown()

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _state(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
        """Weights, optimizers and the rest, in host memory."""
        stage, config, optimizing = self.stage, self.context.config, self.context.runtime.optimizing
        weights = {f"{name}.{key}": value for name, m in stage.modules.items() for key, value in m.state_dict().items()}
        optimizers = {name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()}
        state = {
            "stage": stage.name,
            "images_seen": step * config.training.global_batch_size,
            "config": config.as_dict(),
            "data_hash": self.context.train.content_hash,
            "skipped_steps": optimizing.skipped,
        }
        return _on_host(weights), _on_host(optimizers) | {"scaler": optimizing.scaler_state()}, state

    def _write(self, step: int, weights: dict[str, Tensor], optimizers: dict[str, Any], state: dict[str, Any]) -> None:
        config = self.context.config
        folder, keep = checkpoint.folder_of(config.run_dir, self.stage.name), config.tracking.keep_checkpoints
        path = checkpoint.save(folder, step, weights, optimizers, state, keep)
        self.context.runtime.say(f"{self.stage.name}: saved {path}")


def _on_host(state: Any) -> Any:
    """A copy of a nested state, its tensors in host memory: training goes on and changes the originals."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _on_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_on_host(value) for value in state)
    return state
