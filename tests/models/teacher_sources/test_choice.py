import pytest

from pcd_hub.errors import TeacherError
from pcd_hub.models.teacher_sources import catalogue, choice
from pcd_hub.models.teacher_sources.choice import ON_CPU, ON_GPU, choose_teacher

COSTS = {teacher.name: teacher.cost for teacher in catalogue.TEACHERS}


@pytest.fixture
def hub(monkeypatch):
    """A Hub that has some repositories; every request is recorded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    requests: list[str] = []

    def install(*names: str, down: str = "") -> list[str]:
        class Api:
            def model_info(self, repo, **_):
                requests.append(repo)
                if repo.removeprefix("timm/") not in names:
                    raise OSError("404 Client Error")

        def probe() -> str:
            requests.append("HEAD")
            return down

        monkeypatch.setattr(choice, "HfApi", Api)
        monkeypatch.setattr(choice, "probe_hub", probe)
        return requests

    return install


@pytest.fixture
def cached(monkeypatch):
    """Say that these teachers are in the cache."""

    def install(*names: str) -> None:
        monkeypatch.setattr(
            choice,
            "try_to_load_from_cache",
            lambda repo, file: "/cache/file" if repo.removeprefix("timm/") in names else None,
        )

    return install


def test_both_lists_are_of_recommended_teachers_with_permissive_licences():
    licenses = {teacher.name: teacher.license for teacher in catalogue.TEACHERS}
    assert {licenses[name] for name in (*ON_CPU, *ON_GPU)} == {"apache-2.0"}
    assert max(COSTS[name] for name in ON_CPU) < 1.2 < COSTS[ON_GPU[0]]


def test_the_first_that_is_cached_is_taken_without_a_request(hub, cached, caplog):
    requests = hub(*ON_GPU)
    cached(ON_GPU[3], ON_GPU[5])
    with caplog.at_level("INFO"):
        found = choose_teacher(device_type="cuda")
    assert found.source == f"timm:{ON_GPU[3]}"
    assert requests == []
    assert (
        f"--teacher.source auto: timm:{ON_GPU[3]} (the first of the list that is in" in caplog.text
    )


def test_else_the_first_on_the_hub(hub, cached):
    cached()
    requests = hub(ON_CPU[1], ON_CPU[2])
    assert choose_teacher().source == f"timm:{ON_CPU[1]}"
    assert requests == ["HEAD", f"timm/{ON_CPU[0]}", f"timm/{ON_CPU[1]}"]
    hub(*ON_GPU, *ON_CPU)
    assert choose_teacher(device_type="cuda").source == f"timm:{ON_GPU[0]}"


def test_small_images_prefer_a_teacher_that_can_use_them(hub, cached, monkeypatch):
    cached()
    hub(*ON_CPU)
    assert choose_teacher(image_size=128).source == f"timm:{ON_CPU[0]}"
    vits_need_more = [
        catalogue.dataclasses.replace(one, stride=28) if one.name == ON_CPU[0] else one
        for one in catalogue.TEACHERS
    ]
    monkeypatch.setattr(choice, "TEACHERS", vits_need_more)
    assert choose_teacher(image_size=128).source == f"timm:{ON_CPU[1]}"
    assert choose_teacher(image_size=32).source == f"timm:{ON_CPU[0]}", "none can use these"


def test_a_teacher_that_timm_lacks_is_left_out(hub, cached, monkeypatch):
    cached(ON_CPU[0], ON_CPU[1])
    hub()
    monkeypatch.setattr(catalogue.timm, "is_model_pretrained", lambda name: name != ON_CPU[0])
    assert choose_teacher().source == f"timm:{ON_CPU[1]}"


@pytest.mark.parametrize("down", ["", "the Hub does not answer (no route)"])
def test_where_none_is_reachable_the_remedy_is_named(hub, cached, down):
    cached()
    hub(down=down)
    with pytest.raises(TeacherError) as refused:
        choose_teacher()
    message = str(refused.value)
    assert all(name in message for name in ON_CPU)
    assert (down or "404 Client Error") in message
    assert "use --teacher.source local-dir:DIR" in message
    assert "\n" not in message


def test_offline_there_is_no_request(hub, cached, monkeypatch):
    cached()
    requests = hub(*ON_CPU)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TeacherError, match="HF_HUB_OFFLINE is set"):
        choose_teacher()
    assert requests == []
