"""Bundles on the Hugging Face Hub. Only a bundle's own files are fetched; loading checks them like any others."""

import re
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.inference import weights

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
"""`owner/name`."""
DIGITS = "[0-9]" * 5
FILES = [weights.CONFIG, weights.CARD, weights.WHOLE, weights.INDEX, f"model-{DIGITS}-of-{DIGITS}.safetensors"]
"""As `weights.PART` and the others, for the Hub's filter."""
LONGEST_REASON = 200


def fetch(name: str) -> Path:
    """The folder of a bundle on the Hub, in the Hub's cache on this machine; offline, what was fetched before.

    The configuration comes first: a repository that holds something else is refused before its weights are fetched.

    Args:
        name: `owner/name`.

    Raises:
        UserError: if it cannot be fetched, or is no bundle.
    """
    folder = _fetch_files(name, [weights.CONFIG])
    if not weights.is_bundle(folder):
        raise UserError(f"{name}: is on the Hub, but not a bundle of latentfuse: its {weights.CONFIG} does not say so")
    return _fetch_files(name, FILES, folder.name)


def _fetch_files(name: str, patterns: list[str], revision: str | None = None) -> Path:
    from huggingface_hub import constants, errors, snapshot_download  # takes a second

    missing = f"{name}: no such folder here, and not fetched from {constants.ENDPOINT}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except errors.RepositoryNotFoundError:
        raise UserError(f"{missing}: there is none of this name, or it is private (`hf auth login`)") from None
    except Exception as error:  # its HTTP library, and with it the errors, differ between versions
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        fix = f"where there is internet, `hf download {name} --local-dir FOLDER` makes a folder to load"
        raise UserError(f"{missing}: {fix} ({type(error).__name__}: {reason})") from None
