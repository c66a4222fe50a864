"""Dumps of failed steps, and stops by signals."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from andfast.training.failure import NonFiniteLossError, dump_failure, largest_gradient, load_failure
from andfast.training.signals import SIGNALS, GracefulStop, StopRequested

pytestmark = pytest.mark.usefixtures("terminal_signals")


def test_error_names_loss_step_and_dump(tmp_path: Path) -> None:
    dump = dump_failure(tmp_path, stage="gan", step=12, name="perceptual", state={})
    error = NonFiniteLossError("perceptual", float("nan"), stage="gan", step=12, dump=dump, reproduce="do this")
    text = str(error)
    assert "\n" not in text
    for part in (
        "loss 'perceptual' is nan in step 12 of stage gan",
        "the weights are those before this step",
        str(dump),
    ):
        assert part in text
    assert text.endswith("to reproduce it: do this")
    assert (error.name, error.stage, error.step, error.dump) == ("perceptual", "gan", 12, dump)
    plain = NonFiniteLossError("l1", float("inf"), stage="net", step=1, dump=dump)
    assert f"torch.load({str(dump)!r}, weights_only=True)" in str(plain)


def test_dump_round_trips(tmp_path: Path) -> None:
    hr = torch.tensor([float("nan"), 1.0])
    path = dump_failure(tmp_path, stage="net", step=3, name="l1", state={"hr": hr, "theta": (hr, [hr]), "seed": 7})
    assert path == tmp_path / "failures" / "net-00000003-l1.pt"
    contents = load_failure(path)
    assert (contents["stage"], contents["step"], contents["name"], contents["rank"]) == ("net", 3, "l1", 0)
    assert contents["state"]["hr"].view(torch.int32).equal(hr.view(torch.int32))
    assert contents["state"]["theta"][1][0].shape == (2,)
    second = dump_failure(tmp_path, stage="net", step=3, name="l1", state={}, rank=1)
    assert second.name == "net-00000003-l1-rank1.pt"
    assert load_failure(second)["rank"] == 1


def test_dump_rejects_invalid_arguments_and_files(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"dump\['state'\]\['path'\] must be a tensor, .* was PosixPath"):
        dump_failure(tmp_path, stage="net", step=3, name="l1", state={"path": tmp_path})
    with pytest.raises(ValueError, match=r"name must be letters, .* was '\.\./l1'"):
        dump_failure(tmp_path, stage="net", step=3, name="../l1", state={})
    with pytest.raises(FileNotFoundError, match="a dump must be a file"):
        load_failure(tmp_path / "nowhere.pt")
    torch.save([1], tmp_path / "other.pt")
    with pytest.raises(ValueError, match="is not a dump of a failed step"):
        load_failure(tmp_path / "other.pt")


def test_failed_dump_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        dump_failure(tmp_path, stage="net", step=3, name="l1", state={})
    assert list((tmp_path / "failures").iterdir()) == []


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_request_a_stop_however_often(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    earlier = [signal.getsignal(number) for number in SIGNALS]
    with GracefulStop() as stop:
        assert not stop
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal_name == number.name
    assert [signal.getsignal(number) for number in SIGNALS] == earlier
    assert capfd.readouterr().err.count(f"{number.name}: finishing this step, then saving") == 1


def test_second_sigint_forces_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with GracefulStop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        now[0] += 5
        os.kill(os.getpid(), signal.SIGINT)  # the first SIGINT, though not the first signal
        now[0] += 0.9
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_name == "SIGTERM"
        now[0] += 0.1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ignored_signals_stay_ignored() -> None:
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with GracefulStop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.signal_name == "SIGUSR1"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_stop_interrupts_a_phase() -> None:
    with GracefulStop() as stop:
        with pytest.raises(StopRequested, match="SIGTERM"), stop.interrupting():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequested), stop.interrupting():
            pytest.fail("the phase began")
    with GracefulStop() as stop:
        with stop.interrupting():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


def test_largest_gradient() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.weight.grad = torch.tensor([[1.0, -3.0], [0.0, 2.0]])
    assert largest_gradient([layer]).item() == 3.0
    layer.bias.grad = torch.tensor([0.0, float("-inf")])
    assert largest_gradient([layer]).item() == float("inf")
    layer.bias.grad = torch.tensor([0.0, float("nan")])
    assert not largest_gradient([layer]).isfinite()


def test_handlers_are_restored_after_an_error() -> None:
    earlier = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), GracefulStop():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is earlier


def test_graceful_stop_needs_the_main_thread() -> None:
    caught: list[BaseException] = []

    def enter() -> None:
        try:
            with GracefulStop():
                pass
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


FORKED = """
import os, signal, sys, time
from andfast.training.signals import GracefulStop
with GracefulStop() as stop:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGINT)
        os.write(writing, b"alive" if not stop else b"asked")
        time.sleep(60)
        os._exit(0)
    print(os.read(reading, 5).decode())
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), bool(stop))
"""


def test_forked_worker_ignores_sigint_and_dies_of_sigterm() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["alive", "-15", "False"]
    assert done.stderr == ""
