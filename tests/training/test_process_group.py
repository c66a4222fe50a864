"""Two ranks whose launcher is killed, whose rank 0 works for longer than the group's timeout, or fails."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked_ranks import Ranks

from andfast.training import distributed
from andfast.training.distributed import process_group
from andfast.training.signals import GracefulStop


def test_ranks_save_and_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    """As after SIGTERM: both leave the loop at the same step."""

    def train() -> None:
        distributed._ORPHAN_POLL = 0.05  # type: ignore[misc]
        with process_group("cpu") as group, GracefulStop() as stop:
            step = 0
            while not group.any(stop.requested):
                step += 1
                time.sleep(0.01)
                (tmp_path / f"begun {group.rank}").touch()
            group.barrier()
            (tmp_path / f"saved {group.rank}").write_text(str(step))

    ranks = Ranks(tmp_path, train)
    for rank in range(2):
        ranks.wait_for(tmp_path / f"begun {rank}")
    os.kill(ranks.launcher, signal.SIGKILL)
    assert ranks.wait()
    assert "the launcher has exited: stopping" in ranks.text(0)
    assert (tmp_path / "saved 0").read_text() == (tmp_path / "saved 1").read_text()


def test_ranks_that_cannot_stop_end_after_a_grace_period(tmp_path: Path) -> None:
    """Rank 0 waits for a rank that no longer answers."""

    def hang() -> None:
        distributed._ORPHAN_POLL, distributed._ORPHAN_GRACE = 0.05, 0.5  # type: ignore[misc]
        with process_group("cpu") as group, GracefulStop():
            (tmp_path / f"begun {group.rank}").touch()
            while True:
                time.sleep(600)

    ranks = Ranks(tmp_path, hang)
    for rank in range(2):
        ranks.wait_for(tmp_path / f"begun {rank}")
    os.kill(ranks.launcher, signal.SIGKILL)
    assert ranks.wait()


def test_failure_of_rank_0_is_said_once(tmp_path: Path) -> None:
    """The other rank ends with the same exit code, without a message."""

    def fail() -> None:
        with process_group("cpu") as group, group.main_first():
            if group.is_main:
                print("error: no usable images", flush=True)
                raise SystemExit(2)
            pytest.fail("rank 1 went on")

    ranks = Ranks(tmp_path, fail)
    assert ranks.wait()
    assert ranks.statuses() == [2, 2]
    assert "error: no usable images" in ranks.text(0)
    assert "error" not in ranks.text(1)
    assert "Traceback" not in ranks.text(0) + ranks.text(1)


def test_waits_for_rank_0_outlast_the_timeout_of_the_group(tmp_path: Path) -> None:
    """Rank 0 packs for longer than collectives may take; a collective of the group itself then fails."""

    def pack() -> None:
        with process_group("cpu") as group:
            default = dist.group.WORLD
            assert default is not None
            default._get_backend(torch.device("cpu"))._set_default_timeout(timedelta(seconds=0.1))  # type: ignore[attr-defined]
            for wait in (group.barrier, lambda: group.any(False)):
                if group.is_main:
                    time.sleep(0.5)
                wait()
            with group.main_first():
                if group.is_main:
                    time.sleep(0.5)
            if group.is_main:
                while not (tmp_path / "failed as expected").exists():
                    time.sleep(0.01)
                os._exit(0)
            with pytest.raises(RuntimeError, match=r"[Tt]imed out|timeout"):
                dist.all_reduce(torch.ones(1))
            (tmp_path / "failed as expected").touch()
            os._exit(0)  # the group is broken

    ranks = Ranks(tmp_path, pack)
    assert ranks.wait()
    assert ranks.statuses() == [0, 0], ranks.text(0) + ranks.text(1)
