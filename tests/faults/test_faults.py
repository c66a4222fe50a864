"""A sample of the campaign of ``make faults``, the same at every run."""

import pytest
from campaign import STOPS, Campaign

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("campaign"))


@pytest.mark.parametrize("eighth", [1, 3, 5, 7])
def test_kill_before_an_event(campaign: Campaign, eighth: int) -> None:
    assert campaign.killed_at(len(campaign.events) * eighth // 8) is None


@pytest.mark.parametrize("event", ["rename checkpoints/.tmp-net-00000001", "rename .tmp-run.json"])
def test_kill_before_a_rename(campaign: Campaign, event: str) -> None:
    assert campaign.killed_at(campaign.events.index(event)) is None


@pytest.mark.parametrize("event", ["fsync checkpoints/.tmp-gan-00000001/state.pt", "open .tmp-summary.json"])
def test_full_disk(campaign: Campaign, event: str) -> None:
    assert campaign.full_at(campaign.events.index(event)) is None


@pytest.mark.parametrize("name", [STOPS[2], STOPS[5]])
def test_signal(campaign: Campaign, name: str) -> None:
    assert campaign.stopped_by(name) is None


def test_second_process_ends(campaign: Campaign) -> None:
    assert campaign.twice_at_once() is None


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "weights/andnet.safetensors"])
def test_damaged_file(campaign: Campaign, name: str) -> None:
    assert campaign.damaged(name) is None
