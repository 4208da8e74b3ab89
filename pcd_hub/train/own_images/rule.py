"""Derive a distillation's settings from its images, student and device: a pure function.

The values for a CPU are those of a configuration that was compared with others on photographs (two
cores, ResNet-18, a supervised teacher, 5 to 26 minutes); its peak learning rate is the starting
point for all batch sizes. Of the values for GPUs, batch and learning rate were tried in one run;
feature maps and centred targets are those measured on a CPU, the others follow common practice.
"""

import math
from collections.abc import Callable, Iterator

from pcd_hub.image_size import format_size, height_width, simplest
from pcd_hub.report.run_report import Setting
from pcd_hub.train.configs.pretraining import OptimConfig
from pcd_hub.train.own_images.situation import SIZE_STEP, Situation, Values

IMAGE_SIZE = {"cpu": 96, "gpu": 224}
"""Height and width of a view, in pixels."""
TEACHER_IMAGE_SIZE = 224
"""Size for which most teachers are trained; larger views do not help them."""
TEACHER_SCALE, FINER_TEACHER_SCALE = 4 / 3, 2
"""Size of the teacher's views as a multiple of the student's; with two feature maps, for teachers
of the usual stride: their map then has the size of the student's finer one."""
FEATURE_MAPS = 2
"""Feature maps of the student that are distilled where the teacher's map is fine enough; measured
on a CPU with views of 96 px (recipes/RESULTS.md, "Finer maps, centred targets and Muon")."""

MIN_BATCH, CPU_BATCH, GPU_BATCH, MAX_BATCH = 8, 32, 256, 1024
"""Images per step: fewest, on a CPU, per GPU, most."""
BATCHES_PER_EPOCH = {"cpu": 1, "gpu": 4}
"""Fewest batches of an epoch. On a CPU, batches of 32 of 50 images were measured."""
MEMORY_SHARE = 0.6
"""Share of a GPU's memory for the student's activations; the rest holds teacher and weights."""

PEAK_LR, PEAK_LR_BATCH, MAX_PEAK_LR = 2e-3, 32, 4e-3
"""AdamW and Muon: peak learning rate of a batch of 32, growing with the root of the batch."""
WARMUP_SHARE = 0.05
HEAD_ONLY_SHARE, MAX_HEAD_ONLY_STEPS = 0.2, 100
"""A student that starts from weights: share and most of the steps for the head alone, whose first
gradients are those of random weights. Of six ways that were compared (recipes/RESULTS.md, "Start
from weights"), this share with the usual learning rate gave the best student; a quarter of the rate
kept the start but improved it less. In longer runs, about 60 steps of 64 images were enough."""
WEIGHT_DECAY = 0.05

CPU_QUEUE, SHORT_GPU_QUEUE, GPU_QUEUE, LONG_RUN_HOURS = 128, 4096, 65_536, 1.0
"""Most negatives on a CPU, on GPUs in short runs, and on GPUs in runs of at least an hour. On
photographs, 128 gave a better student than 16 and 4096 (recipes/RESULTS.md, "Time to quality")."""
MIN_CROP_AREA = 0.2

TRAINING_SHARE = 0.95
"""Share of the hours for training; the rest is for the export and its figures."""
MAX_PASSES = 800
"""Most passes over the images."""
MIN_STEPS = 10
"""Fewest steps of a run whose length is given in hours."""
COMPILE_HOURS = 0.25
"""Shortest run in which compiling saves more time than it takes (on GPUs)."""
CHECKPOINT_SECONDS, LOG_SECONDS, MIN_LOGGED = 300, 30, 20
UNMEASURED_CHECKPOINT_STEPS = {"cpu": 100, "gpu": 500}
"""Steps between checkpoints where the duration of a step is not known."""


FOLLOW_FROM_LENGTH = frozenset(
    {
        *("run.max_steps", "run.checkpoint_every_steps", "run.log_every_steps"),
        "optim.head_only_share",
    }
)
"""Options whose derived values depend on the number of steps."""


def derive(situation: Situation) -> tuple[Setting, ...]:
    """Return a value for every derived option that the user does not set.

    The number of steps and what depends on it are among them if ``seconds_per_step`` is known and
    the user sets no other length.
    """
    values = dict(situation.given)
    decisions = []
    for decide in _RULES:
        for decision in decide(situation, values):
            if decision.option not in situation.given:
                values[decision.option] = decision.value
                decisions.append(decision)
    return tuple(decisions)


def _start(s: Situation, values: Values) -> Iterator[Setting]:
    if s.has_shipped_start and values.get("optim.name") != "lars":
        reason = "better than random weights, which is --student.weights none"
        yield Setting("student.weights", "shipped", reason)


def _is_pretrained(values: Values) -> bool:
    return values.get("student.weights", "none") != "none"


def _image_size(s: Situation, _: Values) -> Iterator[Setting]:
    usual = IMAGE_SIZE[s.kind] // s.student_patch * s.student_patch
    held = max(SIZE_STEP, s.short_side) // s.student_patch * s.student_patch
    if held < usual:
        yield Setting("data.image_size", held, f"the images are {s.short_side} px small (median)")
    else:
        yield Setting("data.image_size", usual, f"on a {s.kind.upper()}")


def _feature_maps(s: Situation, values: Values) -> Iterator[Setting]:
    side = min(height_width(values["data.image_size"]))
    is_fine = s.teacher_patch < SIZE_STEP or FINER_TEACHER_SCALE * side <= TEACHER_IMAGE_SIZE
    if s.student_has_finer_map and is_fine and values.get("method.targets") != "pooled":
        reason = "the map before the last one helps where maps are used"
        yield Setting("method.feature_maps", FEATURE_MAPS, reason)


def _teacher_size(s: Situation, values: Values) -> Iterator[Setting]:
    views = values["data.image_size"]
    if s.teacher_size is not None:  # one number would be the shorter side of oblong views
        size = s.teacher_size if isinstance(views, int) else height_width(s.teacher_size)
        yield Setting("teacher.image_size", size, "the only size that the teacher takes")
        return
    sides = height_width(views)
    is_finer = values.get("method.feature_maps", 1) > 1 and s.teacher_patch == SIZE_STEP
    wanted = FINER_TEACHER_SCALE if is_finer else TEACHER_SCALE
    scale = max(1.0, min(wanted, TEACHER_IMAGE_SIZE / min(sides)))
    fits = s.teacher_patch == SIZE_STEP or not any(side % s.teacher_patch for side in sides)
    if scale == 1 and fits:
        yield Setting("teacher.image_size", simplest(sides), "the student's")
        return
    finer = [max(1, round(side * scale / s.teacher_patch)) * s.teacher_patch for side in sides]
    times = {TEACHER_SCALE: "4/3 of", 2: "twice"}.get(scale, f"{scale:.3g} times")
    reason = f"{times} {format_size(simplest(sides))} px, for a finer feature map"
    if scale == 1:
        reason = f"the nearest multiple of {s.teacher_patch} px, the teacher's patches"
    yield Setting("teacher.image_size", simplest(finer), reason)


def _optimizer(s: Situation, values: Values) -> Iterator[Setting]:
    if s.kind == "cpu" and not _is_pretrained(values):
        yield Setting("optim.name", "muon", "needs fewer steps than AdamW")
    else:
        yield Setting("optim.name", "adamw", "less sensitive to the learning rate than LARS")


def _batch(s: Situation, values: Values) -> Iterator[Setting]:
    limits = {f"{CPU_BATCH} on a CPU": CPU_BATCH}
    if s.kind == "gpu":
        limits = {
            f"{GPU_BATCH} a GPU": GPU_BATCH * s.num_devices,
            f"at most {MAX_BATCH:,}": MAX_BATCH,
        }
        if (
            fitting := _fitting_images(s, math.prod(height_width(values["data.image_size"])))
        ) is not None:
            limits[f"{fitting:,} fit into the memory of a GPU"] = fitting * s.num_devices
    if s.num_images is not None:
        part = {"cpu": "at most all", "gpu": "a quarter of"}[s.kind]
        limits[f"{part} {s.num_images:,} images"] = s.num_images // BATCHES_PER_EPOCH[s.kind]
    reason, most = min(limits.items(), key=lambda limit: limit[1])
    if most < MIN_BATCH:
        reason = f"at least {MIN_BATCH}"
    parts = s.num_devices * s.accumulation_steps
    batch = parts * _power_of_two(max(most, MIN_BATCH) // parts)
    yield Setting("optim.global_batch_size", batch, reason)


def _fitting_images(s: Situation, pixels: int) -> int | None:
    """Return the number of images, in two views each, whose activations fit into a GPU."""
    if s.memory is None or s.bytes_per_pixel is None:
        return None
    needed = bytes_of_views(pixels, s.bytes_per_pixel, precision=s.precision)
    return int(MEMORY_SHARE * s.memory / needed)


def bytes_of_views(pixels: int, bytes_per_pixel: float, *, precision: str) -> float:
    """Return the memory of the student's activations for an image in two views.

    Args:
        pixels: Pixels of a view.
        bytes_per_pixel: Memory that the student's backward pass needs per pixel, in fp32.
        precision: Precision of the Accelerator: fp32 or "no" (which is the same), bf16 or fp16.
    """
    return 2 * pixels * bytes_per_pixel * (1.0 if precision in {"fp32", "no"} else 0.5)


def _power_of_two(most: int) -> int:
    """Return the largest power of two up to ``most``; at least 1."""
    return 1 << max(0, most.bit_length() - 1)


def _learning_rate(s: Situation, values: Values) -> Iterator[Setting]:
    batch = values["optim.global_batch_size"]
    if values["optim.name"] == "lars":
        usual = OptimConfig()
        yield Setting("optim.lr_per_256", usual.lr_per_256, "for LARS, as in PCD")
        yield Setting("optim.warmup_share", usual.warmup_share, "for LARS, as in PCD")
        yield Setting("optim.weight_decay", usual.weight_decay, "for LARS, as in PCD")
        return
    peak = min(PEAK_LR * math.sqrt(batch / PEAK_LR_BATCH), MAX_PEAK_LR)
    lr_per_256 = float(f"{peak * 256 / batch:.3g}")
    yield Setting("optim.lr_per_256", lr_per_256, f"a peak of {peak:.2g} at batch {batch}")
    yield Setting("optim.warmup_share", WARMUP_SHARE, "for AdamW and Muon")
    yield Setting("optim.weight_decay", WEIGHT_DECAY, "for AdamW and Muon")


def _method(s: Situation, _: Values) -> Iterator[Setting]:
    if s.loss == "pixel_info_nce":
        usual, reason = CPU_QUEUE, "on a CPU"
        if s.kind == "gpu":
            is_long = s.has_length or s.hours_or_default >= LONG_RUN_HOURS
            usual = GPU_QUEUE if is_long else SHORT_GPU_QUEUE
            reason = "on GPUs" if is_long else "in a short run"
        half = usual if s.num_images is None else max(1, s.num_images // 2)
        if half < usual:
            usual, reason = half, f"half of {s.num_images:,} images"
        yield Setting("method.queue_length", usual, reason)
    if s.loss == "pixel_info_nce" and s.teacher.startswith("mocov3"):
        yield Setting("method.head", "mocov3", "the teacher's")
    elif s.loss == "pixel_info_nce" and s.teacher_has_head:
        yield Setting("method.head", "linear", "learns faster than MLPs in short runs")
    else:
        yield Setting("method.head", "linear", "for a teacher without a trained head")
        if s.loss == "pixel_info_nce":
            reason = "the vectors of a teacher without a head have a large part in common"
            yield Setting("method.centre_targets", value=True, reason=reason)


def _crops(_: Situation, values: Values) -> Iterator[Setting]:
    area = min(MIN_CROP_AREA, values.get("data.max_crop_area", 1.0))
    yield Setting("data.min_crop_area", area, "smaller crops show too little")


def _hardware(s: Situation, _: Values) -> Iterator[Setting]:
    if s.kind == "cpu":
        yield Setting("data.num_workers", 1, "the cores train as well")
    else:
        workers = min(16, max(1, s.cores - 1))
        yield Setting("data.num_workers", workers, f"{s.cores} cores for each process")
    reason = "no units for bfloat16" if s.precision == "fp32" else "the hardware supports it"
    yield Setting("speed.precision", s.precision, reason)
    if s.kind == "gpu" and not s.has_length:
        worth_it = s.hours_or_default >= COMPILE_HOURS
        reason = "saves more time than it takes" if worth_it else "takes longer than it saves"
        yield Setting("speed.compile", worth_it, reason)


def _length(s: Situation, values: Values) -> Iterator[Setting]:
    if s.seconds_per_step is not None and not s.has_length:
        yield steps_in_hours(s, values["optim.global_batch_size"])


def _head_only(s: Situation, values: Values) -> Iterator[Setting]:
    if values["optim.name"] == "lars" or not _is_pretrained(values):
        return
    share = HEAD_ONLY_SHARE
    steps = values.get("run.max_steps")
    if steps is None and s.num_images is not None:
        batches = max(1, s.num_images // values["optim.global_batch_size"])
        steps = batches * values.get("optim.epochs", 0)
    if steps:
        share = min(share, float(f"{MAX_HEAD_ONLY_STEPS / steps:.3g}"))
    reason = "the head first: the gradients of a random one would damage the start"
    yield Setting("optim.head_only_share", share, reason)


def _intervals(s: Situation, values: Values) -> Iterator[Setting]:
    steps = values.get("run.max_steps")
    if s.has_length:
        every = UNMEASURED_CHECKPOINT_STEPS[s.kind]
        yield Setting("run.checkpoint_every_steps", every, f"usual on a {s.kind.upper()}")
    if s.seconds_per_step is None or steps is None:
        return
    every = min(steps, _round_number(CHECKPOINT_SECONDS / s.seconds_per_step))
    yield Setting("run.checkpoint_every_steps", every, "about every 5 minutes")
    every = min(_round_number(LOG_SECONDS / s.seconds_per_step), _round_number(steps / MIN_LOGGED))
    yield Setting("run.log_every_steps", every, "about every half minute, and 20 times a run")


def _round_number(most: float) -> int:
    """Return the largest of 1, 2, 5, 10, 20, 50 ... up to ``most``; at least 1."""
    if most < 1:
        return 1
    power = 10 ** int(math.log10(most))
    return max(power * digit for digit in (1, 2, 5) if power * digit <= most)


def steps_in_hours(s: Situation, global_batch_size: int) -> Setting:
    """Return the number of steps for the hours; fewer than MIN_STEPS if they are too short."""
    assert s.seconds_per_step is not None, "measured"
    steps = max(0, int(training_seconds(s) / s.seconds_per_step))
    which = " (the default)" if s.hours is None else ""
    reason = f"{s.hours_or_default:g} h{which} at {s.seconds_per_step:.3g} s a step"
    if s.num_images is not None:
        most = MAX_PASSES * max(1, s.num_images // global_batch_size)
        if most < steps:
            steps, reason = most, f"{MAX_PASSES} passes over {s.num_images:,} images"
    return Setting("run.max_steps", steps, reason)


def training_seconds(s: Situation) -> float:
    """Return the seconds of the hours that are left for the steps."""
    return TRAINING_SHARE * s.hours_or_default * 3600 - s.seconds_used


def least_hours(s: Situation) -> float:
    """Return the least hours for MIN_STEPS steps, rounded up."""
    assert s.seconds_per_step is not None, "measured"
    seconds = (MIN_STEPS * s.seconds_per_step + s.seconds_used) / TRAINING_SHARE
    return math.ceil(1.1 * seconds / 36) / 100  # 10 % more: the next start may take longer


_RULES: tuple[Callable[[Situation, Values], Iterator[Setting]], ...] = (
    *(
        _start,
        _image_size,
        _feature_maps,
        _teacher_size,
        _batch,
        _optimizer,
        _learning_rate,
        _method,
        _crops,
    ),
    *(_hardware, _length, _head_only, _intervals),
)
