"""A bundle's networks as ONNX files, which other runtimes read; checked against torch before they are used.

encoder.onnx     image (1, 3, S, S) in [-1, 1] -> z (1, C, S/32, S/32)
generator.onnx   z_a, z_b, lambdas (1, N) -> image (1, 3, S, S): mixed (docs/method.md, eq. 1) and generated
region.onnx      the same with mask (S, S) in [0, 1]: fused where it is 1, as `Bundle.fuse` does; twice the work
"""

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.common.errors import UserError
from pipeline.inference.bundle import Bundle

ENCODER, GENERATOR, REGION = "encoder.onnx", "generator.onnx", "region.onnx"
OPSET = 18
"""The oldest that torch's exporter writes; every runtime of the last years reads it."""
TOLERANCE = 1e-4
"""Largest difference from torch, of images in [-1, 1], with which an export is accepted."""
HALF_TOLERANCE = 1 / 127.5
"""The same with weights in half precision: one of 255 levels. Of the demo's model it takes a fifteenth."""
SMALL = 1024
"""Tensors of fewer numbers stay in single precision: they take no room."""


class Fusion(nn.Module):
    """z_a, z_b, Lambda and perhaps a mask -> C: what `Bundle.fuse` computes after it has encoded."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.model = bundle.model
        self.eval()

    def forward(self, z_a: Tensor, z_b: Tensor, lambdas: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.model.fuse_unchecked(z_a, z_b, lambdas, mask)


def require_onnx() -> None:
    """Raises:
    UserError: with the command that installs what exporting needs.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"the page needs {name}; run: pip install 'latentfuse[web]'") from None


@torch.no_grad()
def write_networks(bundle: Bundle, folder: Path, *, half: bool = False) -> float:
    """Write the three files into `folder`; the largest difference from torch that was found, of images in [-1, 1].

    Args:
        bundle: on the CPU.
        half: store the weights in half precision; they are computed with in single precision.

    Raises:
        UserError: if the differences are larger than `TOLERANCE`, or than `HALF_TOLERANCE` with `half`; or onnx,
            onnxscript or onnxruntime is missing.
    """
    require_onnx()
    size = bundle.image_size
    image, mask = torch.zeros(1, 3, size, size), torch.ones(size, size)
    z, lambdas = bundle.encode(image), torch.ones(1, bundle.elements)
    mixing = {"z_a": z, "z_b": z.clone(), "lambdas": lambdas}  # one tensor given twice would become one input
    fusion = Fusion(bundle)
    _export(bundle.model.encoder, {"image": image}, folder / ENCODER, half)
    _export(fusion, mixing, folder / GENERATOR, half)
    _export(fusion, mixing | {"mask": mask}, folder / REGION, half)
    difference, allowed = largest_difference(bundle, folder), HALF_TOLERANCE if half else TOLERANCE
    if not difference <= allowed:  # one that is no number is refused, too
        advice = "; leave out --half" if half else ""
        raise UserError(f"the exported networks differ from torch by {difference:.2g}, more than {allowed:.2g}{advice}")
    return difference


def _export(network: nn.Module, inputs: dict[str, Tensor], path: Path, half: bool) -> None:
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter, about itself
        program = torch.onnx.export(
            network, tuple(inputs.values()), input_names=list(inputs), output_names=["output"],
            opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    _forget_sources(model.graph)
    if half:
        _store_half(model)
    onnx.save(model, path)


def _forget_sources(graph: Any) -> None:
    """Without the exporter's notes: they hold lines of code, and paths of this machine."""
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _store_half(model: Any) -> None:
    """Large weights become float16 with a cast to float32 behind them, which a runtime does once, when it loads."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.size < SMALL:
            continue
        name = weight.name
        with np.errstate(over="ignore"):  # what becomes infinite, the check finds
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class Networks:
    """The three files in onnxruntime, on the CPU: photographs' pixels to a fused image, as the page does it."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        def opened(name: str) -> Any:
            return onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])

        self.encoder, self.generator, self.region = (opened(name) for name in (ENCODER, GENERATOR, REGION))

    def fuse(self, a: Tensor, b: Tensor, lambdas: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `Bundle.fuse`, of two images (1, 3, S, S), Lambda (N,) and perhaps a mask (S, S)."""
        z_a, z_b = (self.encoder.run(None, {"image": image.numpy()})[0] for image in (a, b))
        inputs = {"z_a": z_a, "z_b": z_b, "lambdas": lambdas[None].numpy()}
        if mask is None:
            fused = self.generator.run(None, inputs)[0]
        else:
            fused = self.region.run(None, inputs | {"mask": mask.numpy()})[0]
        return torch.from_numpy(fused)


def largest_difference(bundle: Bundle, folder: Path) -> float:
    """Between the files in onnxruntime and the bundle in torch, over several images, Lambdas and masks."""
    networks = Networks(folder)
    differences = [networks.fuse(*case) - bundle.fuse(*case) for case in _cases(bundle)]
    return torch.stack([difference.abs().max() for difference in differences]).max().item()


def _cases(bundle: Bundle) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """A and B, Lambda, mask: soft colours and noise; all of A, all of B, halves, each element alone, random."""
    size, elements, draw = bundle.image_size, bundle.elements, torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 4, 4, generator=draw) * 2 - 1
    soft = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    noise = torch.rand(1, 3, size, size, generator=draw) * 2 - 1
    square = torch.zeros(size, size)
    square[size // 4 : size // 2, size // 3 :] = 1
    plain = [torch.ones(elements), torch.zeros(elements), torch.full((elements,), 0.5)]
    for lambdas in (*plain, *(1 - torch.eye(elements)), torch.rand(elements, generator=draw)):
        yield soft, noise, lambdas, None
    for mask in (torch.zeros(size, size), torch.ones(size, size), square, torch.rand(size, size, generator=draw)):
        yield soft, noise, torch.rand(elements, generator=draw), mask
