"""Run the feature maps of an exported ONNX file as a frozen timm model."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pcd_hub.errors import WeightError, first_line, pip_install
from pcd_hub.weights.formats.onnx_files import METADATA


class OpenedOnnx(NamedTuple):
    """An exported ONNX file and the normalisation of its images."""

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


class OnnxFeatureMaps(nn.Module):
    """The feature maps of an onnxruntime session, by the interface of timm that probes use."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # tells the device

    def forward_intermediates(
        self,
        images: Float[Tensor, "b c height width"],
        indices: int,
        *,
        norm: bool = False,
        intermediates_only: bool = True,
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Return the last ``indices`` feature maps; no norm is applied.

        Raises:
            WeightError: If the file takes images of another size only.
        """
        del norm, intermediates_only
        sizes = list(zip(self._session.get_inputs()[0].shape[2:], images.shape[2:], strict=True))
        if any(isinstance(own, int) and own != given for own, given in sizes):
            own_size, given_size = (" x ".join(map(str, size)) for size in zip(*sizes, strict=True))
            raise WeightError(
                f"onnx: the file takes images of {own_size} px only, found {given_size}; use its "
                "size (--data.image-size)"
            )
        maps = self._session.run(None, {"images": images.cpu().numpy()})
        return [torch.from_numpy(one).to(images.device) for one in maps[-indices:]]

    def forward(self, images: Tensor) -> Tensor:
        raise WeightError(
            "onnx: an ONNX file has feature maps for the probe with masks; expected a timm model "
            "for anything else"
        )


def open_onnx(file: Path) -> OpenedOnnx:
    """Open a file that ``pcd-hub export --to onnx`` wrote, in any precision.

    Raises:
        WeightError: If onnxruntime is missing or cannot read the file, or the file has pooled
            embeddings or lacks the metadata of an export.
    """
    try:
        import onnxruntime  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - optional
    except ModuleNotFoundError as error:
        raise WeightError(
            f"{file} needs onnxruntime, which is missing; {pip_install('integrations')}"
        ) from error
    if not file.is_file():
        raise WeightError(f"no file {file}; expected the .onnx file of pcd-hub export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many types
        raise WeightError(
            f"{file}: onnxruntime cannot read it ({first_line(error)[:200]}); export it again"
        ) from error
    facts = session.get_modelmeta().custom_metadata_map
    try:
        mean, std = (tuple(map(float, json.loads(facts[METADATA + k]))) for k in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightError(
            f"{file} does not state mean and std of its images; expected a file of pcd-hub export"
        ) from error
    if len(mean) != 3 or len(std) != 3 or any(len(one.shape) != 4 for one in session.get_outputs()):
        raise WeightError(f"{file}: expected feature maps of RGB images; export without --pooled")
    return OpenedOnnx(OnnxFeatureMaps(session), mean, std)
