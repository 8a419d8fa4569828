import time

from finetune.run.clock import Clock


def test_pauses_do_not_count(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(7.0)
    now[0] += 5
    assert clock.seconds == 12
    with clock.paused():
        now[0] += 1000
        assert clock.seconds == 12
    assert clock.seconds == 12
    now[0] += 3
    assert clock.seconds == 15
