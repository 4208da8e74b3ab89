"""Command line of the figures of features and receptive fields (``recipes/look.py``)."""

import torch
from jaxtyping import Float
from torch import Tensor

from pcd_hub.data.sources.open import ImageSource, open_source
from pcd_hub.errors import ConfigError
from pcd_hub.evaluate.feature_maps import centre_crops, compute_device, feature_extractor
from pcd_hub.evaluate.models import check_models, open_model
from pcd_hub.evaluate.progress import progress
from pcd_hub.evaluate.receptive_field import effective_receptive_field, side_of_half
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.report.features import save_pca, save_receptive_fields
from pcd_hub.train.configs.command_line import parse, run_main
from pcd_hub.train.configs.probes import LOOK, LookDataConfig
from pcd_hub.train.launch import quiet_logs
from pcd_hub.train.run_folder.folder import output_folder


def main(arguments: list[str]) -> None:
    """Draw every model's feature maps and receptive field."""
    _, config = parse(LOOK, "quickstart", arguments)
    quiet_logs()
    check_models(config.models, (config.run.seed,))
    images, size = read_images(config.data), config.data.image_size
    with output_folder(config.run.output_dir, "look") as folder:
        teacher = load_teacher(config.teacher.source, image_size=size).to(compute_device())
        maps = {config.teacher.source: teacher(images).cpu()}
        fields, shares = {}, {}
        for name in progress(config.models, "models", total=len(config.models)):
            model = open_model(name, image_size=size, seed=config.run.seed)
            extract = feature_extractor(model, size)
            with torch.inference_mode():
                maps[name] = extract(images).cpu()
            fields[name] = effective_receptive_field(extract, images)
            shares[name] = f"within {100 * side_of_half(fields[name]):.0f} %"
        for name in config.models:
            print(f"{name}: half of the receptive field {shares[name]}")
        save_pca(folder / "pca.png", (255 * images).round().byte().cpu(), maps)
        save_receptive_fields(
            folder / "receptive_field.png",
            {f"{name}\nhalf {shares[name]}": field for name, field in fields.items()},
        )
        print(f"{folder / 'pca.png'}: rows are the images, {', '.join(maps)}")
        print(f"{folder / 'receptive_field.png'}")


def read_images(data: LookDataConfig) -> Float[Tensor, "b 3 size size"]:
    """Read centre crops of evenly spaced images of the source."""
    source = open_source(data.source)
    if not isinstance(source, ImageSource):
        raise ConfigError(
            f"--data.source {data.source} is a stream: expected a finite set of images"
        )
    count = min(data.num_images, len(source))
    rows = [number * len(source) // count for number in range(count)]
    return torch.cat(list(centre_crops(source, rows, size=data.image_size, num_workers=0)))


if __name__ == "__main__":
    run_main(main)
