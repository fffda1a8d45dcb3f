"""A page that fuses two photographs in the browser: a folder for any web server, all of it made from one bundle.

OUT/manifest.json              what the page needs to know, and the names of all files
OUT/index.html, page.js, page.css
OUT/encoder.onnx, generator.onnx, region.onnx
OUT/regions.bin                a byte for each pixel of each region, row by row: 1 where B enters
OUT/example-1.jpg ...          painted faces
OUT/ort.wasm.bundle.min.mjs, ort-wasm-simd-threaded.wasm   onnxruntime-web, where it was given
"""

import base64
import hashlib
import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.common.version import VERSION
from pipeline.data.synth.faces import draw_factors, paint
from pipeline.inference import onnx_files
from pipeline.inference.bundle import load_bundle
from pipeline.inference.fuse import PRESETS
from pipeline.models import regions
from pipeline.models.elements import Element, element_names

MANIFEST, INDEX = "manifest.json", "index.html"
PAGE_FILES = (INDEX, "page.js", "page.css")
RUNTIME_VERSION = "1.30.0"
RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    "ort-wasm-simd-threaded.wasm": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
"""onnxruntime-web: its script and its compiled part, with the hashes of `RUNTIME_VERSION` in npm's package."""
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME_VERSION}/dist/"
CDN_PLACE = "RUNTIME-ORIGIN"
"""In index.html, where the content security policy names what else than the page's own server may be asked."""
EXAMPLES, EXAMPLES_SEED = 4, 7
PRESET_TITLES = {"content-style": "Content of A, style of B"}
LONGEST_TEXT = 200
"""Characters of an element's name or sentence."""


class Written(NamedTuple):
    """What `write_page` made."""

    bytes: int
    difference: float
    """Largest difference from torch, of images in [-1, 1]."""


def write_page(path: Path, out: Path, *, half: bool = False, runtime: Path | None = None) -> Written:
    """Write the page of a bundle: whole or not at all. A page that was there is replaced, and nothing else.

    Args:
        path: the bundle's folder.
        half: store weights in half precision.
        runtime: onnxruntime-web as npm installs it, to be copied into the page; None: the page asks a CDN for it.

    Raises:
        UserError: `out` holds anything else than a page, or cannot be written; the bundle cannot be loaded; the
            exported networks differ from torch; `runtime` is not that package; onnx is missing.
    """
    onnx_files.require_onnx()
    check_replaceable(out)
    copied = None if runtime is None else _runtime_files(runtime)
    bundle = load_bundle(path)
    size, crop = bundle.image_size, bundle.config.data.crop
    points = bundle.frame
    masks = {name: regions.mask(name, points, size) for name in regions.NAMES}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    layerwise = bundle.config.fusion.reading == "layerwise"
    manifest: dict[str, Any] = {
        "latentfuse": VERSION,
        "page": 1,
        "size": size,
        "crop": crop,
        "elements": [element._asdict() for element in described_elements(path, bundle.config.model)],
        "presets": {PRESET_TITLES.get(name, name): lambdas for name, lambdas in PRESETS.items() if layerwise},
        "landmarks": {name: [(x + 0.5) / size, (y + 0.5) / size] for name, (x, y) in points.items()},
        "regions": list(masks),
        "half": half,
        "trained": bundle.trained,
    }
    out = out.absolute()
    with files.os_errors_named(out), files.replacing_folder(out, check_replaceable) as folder:
        difference = onnx_files.write_networks(bundle, folder, half=half)
        (folder / "regions.bin").write_bytes(torch.stack(list(masks.values())).byte().numpy().tobytes())
        manifest["examples"] = _write_examples(folder)
        manifest["runtime"] = _write_runtime(folder, copied)
        _write_page_files(folder, from_cdn=copied is None)
        manifest["files"] = sorted([*(path.name for path in folder.iterdir()), MANIFEST])
        files.write_json(folder / MANIFEST, manifest)
        total = sum(path.stat().st_size for path in folder.iterdir())
    return Written(total, difference)


def read_page(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that `write_page` wrote; None if it is something else."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(manifest, dict) and "latentfuse" in manifest and manifest.get("page") == 1
    names = manifest.get("files") if ours else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return dict(manifest)


def check_replaceable(out: Path) -> None:
    """Raises:
    UserError: if `out` is there and is not a page, or holds a file that is not the page's.
    """
    if not out.exists() and not out.is_symlink():
        return
    manifest = read_page(out) if out.is_dir() and not out.is_symlink() else None
    if manifest is None:
        raise UserError(f"{out}: exists and is not a page of latentfuse; remove it or name another folder")
    strange = sorted(path.name for path in out.iterdir() if path.name not in manifest["files"])
    if strange:
        raise UserError(f"{out}: {strange[0]} in it is not the page's; move it away or name another folder")


def described_elements(path: Path, config: Any) -> list[Element]:
    """Name and sentence of each element: those in the bundle's config.json, else those of its structure."""
    given = json.loads((path / "config.json").read_bytes()).get("elements")
    usual = element_names(config)
    if not isinstance(given, list) or len(given) != len(usual):
        return usual
    texts = [(each.get("name"), each.get("text")) if isinstance(each, dict) else (None, None) for each in given]
    if not all(isinstance(text, str) and len(text) <= LONGEST_TEXT for pair in texts for text in pair):
        return usual
    return [Element(str(name), str(text)) for name, text in texts]


def _runtime_files(package: Path) -> dict[str, bytes]:
    """The files of onnxruntime-web out of npm's package, or out of its folder `dist`."""
    found = {}
    for name in RUNTIME_FILES:
        places = [place for place in (package / "dist" / name, package / name) if place.is_file()]
        if not places:
            raise UserError(
                f"--runtime {package}: {name} is not in it; "
                f"run: npm install onnxruntime-web@{RUNTIME_VERSION}, and give node_modules/onnxruntime-web"
            )
        found[name] = places[0].read_bytes()
    return found


def _write_runtime(folder: Path, copied: dict[str, bytes] | None) -> list[dict[str, str]]:
    """Where the page finds the script and its compiled part, and what they must hash to."""
    if copied is None:
        return [{"url": CDN + name, "integrity": integrity} for name, integrity in RUNTIME_FILES.items()]
    for name, content in copied.items():
        (folder / name).write_bytes(content)
    return [{"url": name, "integrity": integrity(content)} for name, content in copied.items()]


def integrity(content: bytes) -> str:
    """What a browser compares a file with: its SHA-384, as in `<script integrity=...>`."""
    return f"sha384-{base64.b64encode(hashlib.sha384(content).digest()).decode()}"


def _write_page_files(folder: Path, *, from_cdn: bool) -> None:
    source = resources.files("pipeline.inference") / "page"
    for name in PAGE_FILES:
        with resources.as_file(source / name) as file:
            shutil.copyfile(file, folder / name)
    index = folder / INDEX
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace(CDN_PLACE, CDN if from_cdn else ""), encoding="utf-8")


def _write_examples(folder: Path) -> list[str]:
    names = [f"example-{number}.jpg" for number in range(1, EXAMPLES + 1)]
    for index, name in enumerate(names):
        paint(draw_factors(EXAMPLES_SEED, index)).save(folder / name, quality=92)
    return names
