"""What processes agree on, in two real ones over gloo."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune.errors import UserError
from finetune.machine import set_threads, usable_cores
from finetune.run.processes import CPUSyncBatchNorm, agree, on_main, synchronise_batch_norm
from finetune.run.signals import StopSignals

ROOT = Path(__file__).resolve().parents[2]

SYNCED = """
import sys, torch
import torch.distributed as dist
from torch import nn
from finetune.errors import UserError
from finetune.run.processes import on_main, synchronise_batch_norm
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
x = torch.randn(6, 3, 5, 4) * 2 + 1
share = x[:4] if rank == 0 else x[4:]          # uneven shares
share = share.clone().requires_grad_()
model = nn.Sequential(nn.BatchNorm2d(3))
with torch.no_grad():
    model[0].weight.uniform_(); model[0].bias.uniform_()
state = {k: v.clone() for k, v in model.state_dict().items()}
synchronise_batch_norm(model)
out = model(share)
(out ** 3).sum().backward()
grads = [p.grad for p in model.parameters()]
for g in grads:
    dist.all_reduce(g)
seen = []
try:
    on_main(lambda: (_ for _ in ()).throw(UserError("no such folder")))
except UserError as error:
    seen.append(str(error))
gathered = [None, None]
dist.all_gather_object(gathered, (out.detach(), share.grad, seen))
if rank == 0:
    torch.save({"x": x, "state": state, "out": torch.cat([g[0] for g in gathered]),
                "grad": torch.cat([g[1] for g in gathered]), "params": grads,
                "seen": [g[2] for g in gathered],
                "after": {k: v.clone() for k, v in model.state_dict().items()}}, sys.argv[1])
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_synchronised_batch_norm_equals_one_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SYNCED)
    out = tmp_path / "out.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", script, out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    saved = torch.load(out, weights_only=True)
    reference = nn.Sequential(nn.BatchNorm2d(3))
    reference.load_state_dict(saved["state"])
    x = saved["x"].requires_grad_()
    expected = reference(x)
    (expected**3).sum().backward()
    torch.testing.assert_close(saved["out"], expected.detach())
    torch.testing.assert_close(saved["grad"], x.grad, rtol=1e-4, atol=1e-4)
    for mine, parameter in zip(saved["params"], reference.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-4)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(saved["after"][name], tensor)
    assert saved["seen"] == [["no such folder"], ["no such folder"]]


def test_one_process_keeps_its_batch_norm():
    model = nn.Sequential(nn.BatchNorm2d(3))
    synchronise_batch_norm(model)
    assert type(model[0]) is nn.BatchNorm2d


def test_synchronised_batch_norm_in_eval_is_a_plain_one():
    norm = nn.BatchNorm2d(3).eval()
    x = torch.randn(2, 3, 4, 4)
    expected = norm(x)
    norm.__class__ = CPUSyncBatchNorm
    assert torch.equal(norm(x), expected)


def test_alone_one_agrees_with_oneself():
    assert agree(stop=True) is True
    assert agree() is False
    with pytest.raises(UserError, match="bad file"):
        agree("bad file")


def test_on_main_alone_just_runs():
    assert on_main(lambda: 7) == 7
    with pytest.raises(UserError, match="no"):
        on_main(lambda: (_ for _ in ()).throw(UserError("no")))


def test_threads_are_the_cores_shared(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        set_threads(None)
        assert torch.get_num_threads() == usable_cores()
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(usable_cores()))
        set_threads(None)
        assert torch.get_num_threads() == 1
        set_threads(3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_signals_become_a_flag_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert signals.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)  # the launcher's copy of the same wish
        time.sleep(0.01)
        assert signals.received == signal.SIGTERM
        signals.PATIENCE = 0.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
