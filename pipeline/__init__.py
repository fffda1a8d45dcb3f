"""latentfuse: distributed training of element-wise latent fusion of face images.

`load_bundle` is the door for users of a trained model (docs/api.md), and a mistake in its use is a `UserError`.
`losses` and `latents` are the method's equations. Everything else is reached through the command line or by importing
the module that holds it. Importing this package costs nothing: torch is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError
from pipeline.common.version import VERSION

if TYPE_CHECKING:
    from pipeline.inference.loaded import load_bundle
    from pipeline.models import latents, losses

__all__ = ["UserError", "latents", "load_bundle", "losses"]
__version__ = VERSION


def __getattr__(name: str) -> Any:
    if name == "load_bundle":
        from pipeline.inference.loaded import load_bundle

        return load_bundle
    if name in ("latents", "losses"):
        return importlib.import_module(f"pipeline.models.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
