"""Write TorchScript, and what all graphs share: the network, its outputs, the comparison."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pcd_hub.errors import WeightError
from pcd_hub.weights.create import build_model
from pcd_hub.weights.formats.options import GraphOptions
from pcd_hub.weights.formats.readme import Usage
from pcd_hub.weights.load import ReadWeight

TOLERANCE = 1e-4
"""Largest difference of a float32 graph, as a share of the largest value."""


class Graph(NamedTuple):
    """A network to write, images for it, and the names of its outputs."""

    network: nn.Module
    images: Tensor
    names: list[str]
    fixed_size: bool
    """The network takes images of one size only."""

    def other_images(self) -> list[Tensor]:
        """Return images of the traced size and, if the network takes it, of another one."""
        images = self.images
        return [images] if self.fixed_size else [images, images.repeat(2, 1, 2, 1)[:3]]


class Difference(NamedTuple):
    """How far the features of a graph are from timm's, for the output that differs most."""

    largest: float
    """Largest difference, as a share of the largest value."""
    rms: float
    """Root mean square of the differences, as a share of that of the values."""

    def __str__(self) -> str:
        return f"largest {self.largest:.1e} of the largest value, root mean square {self.rms:.1e}"


def graph_of(weight: ReadWeight, *, pooled: bool) -> Graph:
    """Build the network of a weight: all feature maps, or one pooled embedding."""
    model = build_model(weight, **({} if pooled else {"features_only": True})).eval()
    cfg = weight.config["pretrained_cfg"]
    channels, *size = cfg["input_size"]
    fixed = bool(cfg.get("fixed_input_size"))
    images = torch.rand(
        2, channels, *(size if fixed else (64, 96)), generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        count = len(listed(model(images)))
    names = ["embedding"] if pooled else [f"features{number}" for number in range(count)]
    return Graph(model, images, names, fixed)


def listed(outputs: Any) -> list[Tensor]:
    """Return the outputs of a network as a list."""
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


@torch.inference_mode()
def measure(
    run: Callable[[Tensor], Sequence[Tensor]], network: nn.Module, batches: Sequence[Tensor]
) -> Difference:
    """Compare the outputs of a graph with those of the network.

    Args:
        run: Runs the graph.
        network: The network that was written, in float32.
        batches: Normalised images, one tensor per size.

    Raises:
        WeightError: If the outputs have other shapes.
    """
    largest = rms = 0.0
    for images in batches:
        for found, expected in zip(run(images), listed(network(images)), strict=True):
            if found.shape != expected.shape:
                raise WeightError(
                    f"the graph has an output of {tuple(found.shape)} instead of "
                    f"{tuple(expected.shape)}; please report this"
                )
            error = (found - expected).double()
            largest = max(largest, _ratio(error.abs().max(), expected.abs().max()))
            rms = max(rms, _ratio(error.norm(), expected.double().norm()))
    return Difference(largest, rms)


def _ratio(error: Tensor, of: Tensor) -> float:
    """Return a ratio; infinite if either is not finite."""
    ratio = float(error / of.clamp_min(torch.finfo(torch.float32).tiny))
    return ratio if ratio == ratio else float("inf")  # noqa: PLR0124 - NaN


def check_close(difference: Difference, what: str, tolerance: float = TOLERANCE) -> Difference:
    """Return the difference if it is within the tolerance.

    Raises:
        WeightError: If it is not.
    """
    if difference.largest > tolerance:
        raise WeightError(
            f"the {what} graph computes other values than the model ({difference}); "
            "please report this"
        )
    return difference


def write_torchscript(
    weight: ReadWeight, folder: Path, place: PurePath, options: GraphOptions
) -> Usage:
    """Write a traced graph, which needs torch alone.

    Raises:
        WeightError: If the traced graph computes other values at another size.
    """
    graph = graph_of(weight, pooled=options.pooled)
    file = f"{weight.record.name}.torchscript.pt"
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        network = graph.network
        traced: Any = torch.jit.trace(network, graph.images, check_trace=False, strict=False)
        difference = check_close(
            measure(lambda images: listed(traced(images)), network, graph.other_images()),
            "TorchScript",
        )
        torch.jit.save(traced, folder / file)
    return Usage(
        file=file,
        code=f"""import torch
network = torch.jit.load("{place / file}")
{", ".join(graph.names)} = network(images)  # float32, (B, C, H, W)""",
        notes=(describe_outputs(graph),),
        precision="float32",
        difference=f"{difference} (torch {torch.__version__}, CPU)",
    )


@torch.inference_mode()
def describe_outputs(graph: Graph) -> str:
    """Describe the images' size, if it is fixed, and the outputs: channels and strides."""
    height, width = graph.images.shape[-2:]
    size = f"Images: {height} x {width} pixels only. " if graph.fixed_size else ""
    facts = []
    for name, output in zip(graph.names, listed(graph.network(graph.images)), strict=True):
        stride = (
            f", stride {graph.images.shape[-1] // output.shape[-1]}" if output.ndim == 4 else ""
        )
        facts.append(f"`{name}` {output.shape[1]} channels{stride}")
    return f"{size}Outputs: {'; '.join(facts)}."
