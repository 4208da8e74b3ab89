"""Pictures of what backbones see: their pixels as colours, and how far each pixel looks.

    python recipes/look.py --source IMAGES --models random:resnet18 resnet18.pcd resnet18_mhsa.pcd

``pca.png``: images, the teacher's pixels, then each model's, the first three principal components
as RGB. ``receptive_field.png``: which pixels of the image the middle pixel of the last map depends
on, and the side of the square that holds half of it.
"""

import torch
from torch import Tensor

from pcd_hub.data.sources import ImageSource, open_source
from pcd_hub.errors import ConfigError
from pcd_hub.evaluate.feature_maps import centre_crops, compute_device, pixels_of
from pcd_hub.evaluate.models import check_models, open_model
from pcd_hub.evaluate.progress import progress
from pcd_hub.evaluate.receptive_field import effective_receptive_field, side_of_half
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.report.pictures import save_pca, save_receptive_fields
from pcd_hub.train.configs.command_line import parse, run
from pcd_hub.train.configs.probes import LOOK, LookConfig
from pcd_hub.train.launch import quiet_logs
from pcd_hub.train.run_folder.folder import new_folder


def main(arguments: list[str]) -> None:
    """Parse, look, draw."""
    _, config = parse(LOOK, "quickstart", arguments)
    quiet_logs()
    check_models(config.models, (config.seed,))
    images = _images(config)
    folder = new_folder(config.run.output_dir, "look")
    teacher = load_teacher(config.teacher, image_size=config.image_size).to(compute_device())
    maps = {config.teacher: teacher(images).cpu()}
    fields, within = {}, {}
    for name in progress(config.models, "models", total=len(config.models)):
        under_test = open_model(name, image_size=config.image_size, seed=config.seed)
        pixels = pixels_of(under_test, config.image_size)
        with torch.inference_mode():
            maps[name] = pixels(images).cpu()
        fields[name] = effective_receptive_field(pixels, images)
        within[name] = f"within {100 * side_of_half(fields[name]):.0f} %"
    for name in config.models:
        print(f"{name}: half of the receptive field {within[name]}")
    save_pca(folder / "pca.png", (255 * images).round().byte().cpu(), maps)
    save_receptive_fields(
        folder / "receptive_field.png",
        {f"{name}\nhalf {within[name]}": field for name, field in fields.items()},
    )
    print(f"{folder / 'pca.png'}\n{folder / 'receptive_field.png'}")


def _images(config: LookConfig) -> Tensor:
    source = open_source(config.source)
    if not isinstance(source, ImageSource):
        raise ConfigError(f"--source {config.source} is a stream; name a finite set")
    count = min(config.images, len(source))
    rows = [number * len(source) // count for number in range(count)]
    return torch.cat(list(centre_crops(source, rows, size=config.image_size, num_workers=0)))


if __name__ == "__main__":
    run(main)
