"""One server forks the processes of all tests that kill them: whoever starts it decides what it has imported."""

import multiprocessing

multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["pipeline.cli", "pipeline.workflow", "pipeline.data.writing", "torch.utils.tensorboard", "torchvision.io"]
)
