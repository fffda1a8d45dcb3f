"""Images decoded once: `data.cache` disk keeps them in a memory map, `device` where the training runs.

FOLDER/HASH-128px-avx2.u8      (N, 3, S, S) uint8, in the order of the shards
FOLDER/HASH-128px-avx2.json    written last: what the pixels were made from, and the CRC32 of each block of them
FOLDER/HASH-128px-avx2.lock    held while the two are made

The bytes are those that decoding gives, so nothing that is trained differs. A block's CRC32 is compared when it is
sent to a device, and all of them when the file is not the one that was built here: by its time and size. Not for
each image that is read: that would take as long as reading it.
"""

import fcntl
import gc
import json
import os
import shutil
import socket
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.common.files import os_errors_named
from pipeline.common.processes import run_tasks, stoppable
from pipeline.common.progress import progress
from pipeline.data.loading.loader import FaceImages, Loaded, tolerate

SCHEMA = 1
BLOCK = 256
"""Images of the file that are decoded, and have a CRC32, together."""
AT_A_TIME = 32
"""Images that are decoded together on their way to a device."""


@dataclass(frozen=True)
class Identity:
    """What decides the pixels."""

    content_hash: str
    samples: int
    image_size: int
    crop: int | None
    decoder: str
    """Its versions, and what of the processor they use: others may round differently."""
    schema: int = SCHEMA

    @classmethod
    def of(cls, faces: FaceImages) -> "Identity":
        processor = torch.backends.cpu.get_cpu_capability()
        decoder = f"torch {torch.__version__}, torchvision {torchvision.__version__}, {processor}"
        config = faces.config
        return cls(faces.content_hash, len(faces), config.image_size, config.crop, decoder)

    @property
    def image_bytes(self) -> int:
        return 3 * self.image_size**2

    @property
    def bytes(self) -> int:
        return self.samples * self.image_bytes

    @property
    def name(self) -> str:
        """With the processor's kind: nodes that differ may share a folder, and none may undo what another reads."""
        crop = f"-crop{self.crop}" if self.crop else ""
        processor = self.decoder.rpartition(", ")[2].lower().replace(" ", "-")
        return f"{self.content_hash[:16]}-{self.image_size}px{crop}-{processor}"


class Block(NamedTuple):
    """A part of the file, as it was written."""

    first: int
    crc32: int
    bad: tuple[int, ...]
    """Images that could not be read, in whose places others stand."""


def hold(faces: FaceImages, kind: Literal["disk", "device"], folder: Path, device: torch.device) -> None:
    """Decode `faces`, or find them decoded; from here on their batches come from there.

    May be called by every process of every node at once, without collectives: of those that share `folder` one
    decodes, and the others wait for it.

    Raises:
        UserError: an image cannot be read and data.max_bad_samples does not allow for it, there is not enough room
            on the disk or the device, or `folder` cannot be written to.
    """
    identity = Identity.of(faces)
    with os_errors_named(folder):
        if kind == "disk":
            faces.pixels = _on_disk(faces, identity, folder)
        else:
            faces.pixels = _on_device(faces, identity, folder, device)


def _on_disk(faces: FaceImages, identity: Identity, folder: Path) -> Tensor:
    path = folder / f"{identity.name}.u8"
    sidecar = _usable(faces, identity, path)
    if sidecar is None:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):  # another process may have built it meanwhile
            sidecar = _usable(faces, identity, path) or _build(faces, identity, path)
    _say_what_is_bad(faces, sidecar["bad"])
    return _mapped(path, identity)


def _on_device(faces: FaceImages, identity: Identity, folder: Path, device: torch.device) -> Tensor:
    free = _free(device)
    if identity.bytes > free:
        raise UserError(
            f"data.cache: device needs {identity.bytes / 2**30:.2f} GiB on {device} for {identity.samples} images, "
            f"{free / 2**30:.2f} GiB ({free} bytes) are free; use disk"
        )
    shape = (identity.samples, 3, identity.image_size, identity.image_size)
    pixels = torch.empty(shape, dtype=torch.uint8, device=device)
    path = folder / f"{identity.name}.u8"
    sidecar = _sidecar(path, identity)
    if sidecar is not None and not _mended(faces, sidecar["bad"]):
        _say_what_is_bad(faces, sidecar["bad"])
        if _send(path, identity, sidecar["crc32"], pixels):
            return pixels
        print(f"{path}: damaged; every image is decoded again", file=sys.stderr, flush=True)
    _decode(faces, pixels)
    return pixels


def _send(path: Path, identity: Identity, expected: list[int], pixels: Tensor) -> bool:
    """Whether every block of the file is the one that was written."""
    if path.stat().st_size != identity.bytes:
        return False
    held, firsts = _mapped(path, identity), _firsts(identity)
    for first, crc32 in zip(progress(firsts, "blocks sent", len(firsts)), expected, strict=True):
        block = held[first : first + BLOCK]
        if zlib.crc32(block.numpy().data) != crc32:
            return False
        pixels[first : first + BLOCK].copy_(block)
    return True


def _decode(faces: FaceImages, pixels: Tensor) -> None:
    firsts = range(0, len(faces), AT_A_TIME)
    plan = iter(np.split(np.arange(len(faces)), firsts[1:]))
    left_out: set[str] = set()
    with closing(faces.batches(plan, AT_A_TIME)) as batches:
        for first, batch in zip(progress(firsts, f"{AT_A_TIME} images", len(firsts)), batches, strict=True):
            tolerate(batch.problems, left_out, faces.config.max_bad_samples)
            pixels[first : first + AT_A_TIME].copy_(batch.images)


def _build(faces: FaceImages, identity: Identity, path: Path) -> dict[str, Any]:
    """Decode everything into a file of this node's, which gets its name when it is whole. Returns the sidecar."""
    temporary = path.with_name(f".{path.stem}-{socket.gethostname()}.tmp")  # what a killed one left is written over
    for left in (temporary, path.with_suffix(".json"), path):
        left.unlink(missing_ok=True)
    free = shutil.disk_usage(path.parent).free
    if identity.bytes > free:
        raise UserError(
            f"{path.parent}: data.cache=disk needs {identity.bytes / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free; "
            "make room, or set data.cache_dir to a folder on a larger disk"
        )
    firsts = _firsts(identity)
    try:
        with temporary.open("wb") as stream:
            stream.truncate(identity.bytes)
        tasks = run_tasks(_write_block, (faces, temporary), firsts, max(1, faces.config.workers))
        with closing(tasks) as done:
            blocks = sorted(progress(done, f"blocks of {BLOCK} images", len(firsts)))
        files.fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    bad = sorted(index for block in blocks for index in block.bad)
    return _write_sidecar(path, identity, {"bad": bad, "crc32": [block.crc32 for block in blocks]})


def _write_block(shared: tuple[FaceImages, Path], first: int) -> Block:
    faces, path = shared
    size = faces.config.image_size
    pixels = torch.empty((min(BLOCK, len(faces) - first), 3, size, size), dtype=torch.uint8)
    bad = []
    with one_thread():  # each of the workers
        for place, index in enumerate(stoppable(range(first, first + len(pixels)))):
            if faces.fill(pixels[place : place + 1], np.array([index])):
                bad.append(index)
    content = pixels.numpy().reshape(-1).data
    with os_errors_named(path), path.open("r+b") as stream:
        stream.seek(first * 3 * size**2)
        stream.write(content)
    return Block(first, zlib.crc32(content), tuple(bad))


def _mended(faces: FaceImages, bad: list[int]) -> bool:
    """Whether one of the images that could not be read now can."""
    return any(isinstance(loaded := faces[index], Loaded) and not loaded.problems for index in bad)


def _say_what_is_bad(faces: FaceImages, bad: list[int]) -> None:
    """Raises UserError for more than data.max_bad_samples."""
    left_out: set[str] = set()
    for index in bad:
        loaded = faces[index]
        if isinstance(loaded, UserError):
            raise loaded
        tolerate(loaded.problems[:1], left_out, faces.config.max_bad_samples)


def _usable(faces: FaceImages, identity: Identity, path: Path) -> dict[str, Any] | None:
    """The sidecar of a cache that is whole and holds what decoding would give."""
    sidecar = _sidecar(path, identity)
    if sidecar is None or _mended(faces, sidecar["bad"]):
        return None
    stat = path.stat()
    as_built = (stat.st_size, stat.st_mtime_ns) == (sidecar["bytes"], sidecar["mtime_ns"])
    return sidecar if as_built or _is_whole(path, identity, sidecar) else None


def _sidecar(path: Path, identity: Identity) -> dict[str, Any] | None:
    """What is known of a finished cache; None where there is none of these pixels."""
    try:
        value = json.loads(path.with_suffix(".json").read_bytes())
        complete = {"bad", "bytes", "mtime_ns"} <= value.keys() and len(value["crc32"]) == len(_firsts(identity))
        return value if complete and value["identity"] == asdict(identity) and path.exists() else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write_sidecar(path: Path, identity: Identity, found: dict[str, Any]) -> dict[str, Any]:
    stat = path.stat()
    value = {**found, "identity": asdict(identity), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    files.write_json(path.with_suffix(".json"), value)
    return value


def _is_whole(path: Path, identity: Identity, sidecar: dict[str, Any]) -> bool:
    """Compare every block of a file that was copied or changed; one that is right is known from then on."""
    if path.stat().st_size != identity.bytes:
        return False
    with path.open("rb") as stream:
        for crc32 in progress(sidecar["crc32"], "blocks verified", len(sidecar["crc32"])):
            if zlib.crc32(stream.read(BLOCK * identity.image_bytes)) != crc32:
                return False
    with suppress(OSError):  # where it can only be read
        _write_sidecar(path, identity, {key: sidecar[key] for key in ("bad", "crc32")})
    return True


def _mapped(path: Path, identity: Identity) -> Tensor:
    pixels = torch.from_file(str(path), shared=False, size=identity.bytes, dtype=torch.uint8)
    return pixels.view(identity.samples, 3, identity.image_size, identity.image_size)


def _firsts(identity: Identity) -> range:
    """The first image of each block."""
    return range(0, identity.samples, BLOCK)


def _free(device: torch.device) -> int:
    """Bytes of a GPU's memory that nothing uses; of a CPU's, all."""
    if device.type != "cuda":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gc.collect()  # what an earlier stage held
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return free


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread in this block, as in a loader's workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process is in this block; the lock of one that dies is free."""
    with path.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the process that decodes into {path.parent}", file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be locked ({error.strerror}); set data.cache_dir to a folder on a node's own disk"
            ) from None
        yield
