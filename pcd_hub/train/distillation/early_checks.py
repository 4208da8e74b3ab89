"""Check, before the images are read, what does not depend on them: folders, student, teacher."""

from accelerate import Accelerator

from pcd_hub.models.entries import build_skeleton, check_architecture
from pcd_hub.models.teacher_loading import read_parts
from pcd_hub.models.teacher_sources.memory import check_teacher_memory
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.launch import on_main_process
from pcd_hub.train.results.weight import check_weight_name
from pcd_hub.train.run_folder.folder import existing_run, new_folder
from pcd_hub.train.run_folder.preflight import check_places
from pcd_hub.train.students.configs import each_student
from pcd_hub.train.teacher.loading import teacher_image_size


def check_students_and_folders(
    accelerator: Accelerator, config: DistillConfig, *, default_name: str
) -> None:
    """Check that the students exist, and that their results can be written.

    Args:
        accelerator: The run's Accelerator.
        config: The requested configuration.
        default_name: Name of the run's folder below ``runs``, if none is configured.

    Raises:
        ConfigError: If the run's folder contains another run, there is nothing to resume, or a
            folder cannot be written or has too little space.
        StudentError: If timm has no such architecture.
    """

    def check_folder() -> None:
        if config.run.resume:
            existing_run(config, default_name)
        else:
            new_folder(config.run.output_dir, default_name, create=False)

    on_main_process(accelerator, check_folder)
    for one in each_student(config):
        check_architecture(one.student.arch)
        check_places(
            accelerator,
            build_skeleton(one.student.arch),
            run=one.run,
            stored_as=check_weight_name(one) if one.run.store else None,
        )


def check_teacher(accelerator: Accelerator, config: DistillConfig) -> None:
    """Read the teacher once, which downloads it if it is not in the cache.

    Its size follows from the images, so it is read again for the run.

    Args:
        accelerator: The run's Accelerator, whose main process reads.
        config: The configuration, with the source of the teacher that is used.

    Raises:
        TeacherError: If it is unknown, unreachable or damaged, or does not fit into memory.
    """

    def read() -> None:
        check_teacher_memory(
            config.teacher.source,
            image_size=teacher_image_size(config),
            batch_size=2,
            device=accelerator.device,
        )
        read_parts(config.teacher.source)

    on_main_process(accelerator, read)
