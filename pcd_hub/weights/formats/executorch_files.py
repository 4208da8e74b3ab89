"""Write ExecuTorch programs, for phones and other devices without Python."""

import importlib.metadata
import importlib.util
import warnings
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor, nn

from pcd_hub.errors import WeightError, first_line, pip_install
from pcd_hub.weights.formats.graphs import (
    Graph,
    check_close,
    describe_outputs,
    graph_of,
    listed,
    measure,
)
from pcd_hub.weights.formats.options import MAX_SIZE, GraphOptions
from pcd_hub.weights.formats.readme import Usage
from pcd_hub.weights.load import ReadWeight

MAX_BATCH = 4
STRIDE = 32
"""Largest stride of the backbones."""
MIN_SIZE = 2 * STRIDE
"""torch.export treats a feature map of one pixel as another network."""


def write_executorch(
    weight: ReadWeight, folder: Path, place: PurePath, options: GraphOptions
) -> Usage:
    """Write a ``.pte`` file for the XNNPACK backend, with bounded batch, height and width.

    ExecuTorch reserves memory for the largest size, so that every bound has a price.

    Raises:
        WeightError: If executorch is missing, it cannot write the graph, or its runtime computes
            other values.
    """
    if importlib.util.find_spec("executorch") is None:
        raise WeightError(
            f"--to executorch needs executorch, which is missing; {pip_install('executorch')}"
        )
    graph = graph_of(weight, pooled=options.pooled)
    file = folder / f"{weight.record.name}.pte"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported, sizes = _export(graph, options.max_size or MAX_SIZE)
            lowered = _lower(exported)
            file.write_bytes(lowered.buffer)
            difference = check_close(
                measure(_load(file), graph.network, graph.other_images()), "ExecuTorch"
            )
    except (WeightError, OSError):
        raise
    except Exception as error:  # torch.export and executorch raise many types
        raise WeightError(
            f"--to executorch: executorch {_version()} cannot write {weight.record.architecture}: "
            f"{type(error).__name__} {first_line(error)[:200]}"
        ) from error
    return Usage(
        file=file.name,
        code=f"""from executorch.runtime import Runtime
program = Runtime.get().load_program("{place / file.name}")
forward = program.load_method("forward")
{", ".join(graph.names)}, = forward.execute([images])  # float32, (B, C, H, W)""",
        notes=(_notes(lowered, sizes), describe_outputs(graph)),
        precision="float32",
        difference=f"{difference} (executorch {_version()}, CPU)",
    )


def _lower(exported: torch.export.ExportedProgram) -> Any:
    """Lower an exported network to an ExecuTorch program, to XNNPACK where it can."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - optional
        XnnpackPartitioner,
    )
    from executorch.exir import (  # noqa: PLC0415 # pyright: ignore[reportMissingImports]
        to_edge_transform_and_lower,
    )

    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    return lowered.to_executorch()


def _export(graph: Graph, max_size: int) -> tuple[torch.export.ExportedProgram, str]:
    """Export the network, and describe the sizes that it takes.

    Pooling that rounds up, as in ResNet-D, restricts height and width to multiples of the stride.
    """
    network = _Network(graph.network).eval()
    batch = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}
    if graph.fixed_size:
        exported = torch.export.export(network, (graph.images,), dynamic_shapes=(batch,))
        return exported, " x ".join(map(str, graph.images.shape[-2:])) + " px"
    for step, which in ((1, ""), (STRIDE, f", multiples of {STRIDE}")):
        bounds = {"min": MIN_SIZE // step, "max": max_size // step}
        sides = {
            axis: step * torch.export.Dim(name, **bounds)
            for axis, name in ((2, "height"), (3, "width"))
        }
        try:
            exported = torch.export.export(
                network, (graph.images,), dynamic_shapes=({**batch, **sides},)
            )
        except (ValueError, RuntimeError):  # a guard on the sizes
            if step == STRIDE:
                raise
            continue
        return exported, f"height and width {MIN_SIZE} to {max_size} px{which}"
    raise AssertionError


class _Network(nn.Module):
    """A network whose outputs are a tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(listed(self.network(images)))


def _load(file: Path) -> Any:
    """Return a function that runs a file by ExecuTorch's runtime."""
    from executorch.runtime import (  # noqa: PLC0415 # pyright: ignore[reportMissingImports]
        Runtime,
    )

    program = Runtime.get().load_program(file)  # a method alone does not keep it alive
    method = program.load_method("forward")

    def run(images: Tensor) -> list[Tensor]:
        assert program
        return method.execute([images])

    return run


def _notes(lowered: Any, sizes: str) -> str:
    plan = lowered.executorch_program.execution_plan[0]
    reserved = sum(plan.non_const_buffer_sizes) / 1e6
    backend = "All operators run in the XNNPACK backend."
    if plan.operators:
        backend = f"{len(plan.operators)} kinds of operators run outside the XNNPACK backend."
    return f"Batch 1 to {MAX_BATCH}, {sizes}; {reserved:.0f} MB are reserved. {backend}"


def _version() -> str:
    return importlib.metadata.version("executorch")
