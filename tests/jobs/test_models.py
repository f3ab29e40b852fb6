"""The base that adapters share is, behind a training, as it was before."""

from __future__ import annotations

from pathlib import Path

from kdsuite.config import Settings, changed
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.models import base, for_training
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress


def test_one_task_s_recomputed_activations_are_no_other_s(one_task: Settings, tmp_path: Path) -> None:
    lora = changed(one_task, {"models.lora.enabled": True})
    bench = Bench(lora, tmp_path / "r", device.choose("cpu", "float32", 1), Progress.silent())
    common = base(bench, "little")
    for _ in range(2):
        with for_training(bench, "little", checkpointing=True) as model:
            assert model.is_gradient_checkpointing
            assert len(common.get_input_embeddings()._forward_hooks) == 1
        assert not common.is_gradient_checkpointing
        assert not common.get_input_embeddings()._forward_hooks
    assert not any(parameter.requires_grad for parameter in common.parameters())
