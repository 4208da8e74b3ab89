import torch

from pcd_hub import host_memory
from pcd_hub.data.resident.memory import free_bytes
from pcd_hub.host_memory import available_host_memory


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    whole = available_host_memory()
    assert whole is not None
    assert whole > 2**27
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert available_host_memory() > 2**27
    (tmp_path / "memory.max").write_text(f"{2**20}\n")
    assert available_host_memory() == 2**20 - 1000
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 600\n")
    assert available_host_memory() == 2**20 - 400
    (tmp_path / "memory.current").write_text(f"{2**21}\n")
    assert available_host_memory() == 0
    (tmp_path / "memory.current").write_text("1000\n")
    assert free_bytes(torch.device("cpu")) == 2**20 - 400, "resident images ask the same"
