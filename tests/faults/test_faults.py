"""A sample of the campaign of ``make faults``, the same at every run."""

import pytest
from campaign import Campaign, Case, Results, table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("campaign"))


@pytest.mark.parametrize(
    "event",
    [
        "rename .tmp-run.json",
        "rename checkpoints/.tmp-net-00000001",
        "fsync checkpoints/.tmp-net-00000002/state.pt",
        "rename weights/.tmp-andnet.safetensors",
        "rename checkpoints/net-00000001",
    ],
)
def test_kill_before_an_event(campaign: Campaign, event: str) -> None:
    assert campaign.killed_at(campaign.events.index(event)) is None


@pytest.mark.parametrize("event", ["fsync checkpoints/.tmp-gan-00000001/state.pt", "open .tmp-summary.json"])
def test_full_disk(campaign: Campaign, event: str) -> None:
    assert campaign.full_at(campaign.events.index(event)) is None


def test_file_size_limit(campaign: Campaign) -> None:
    """Writes of PyTorch and safetensors fail, not only Python's."""
    assert campaign.full_at(campaign.events.index("mkdir checkpoints/.tmp-net-00000001"), "limit") is None


@pytest.mark.parametrize("name", ["SIGTERM twice", "nohup"])
def test_signal(campaign: Campaign, name: str) -> None:
    assert campaign.stopped_by(name) is None


def test_second_process_ends(campaign: Campaign) -> None:
    assert campaign.twice_at_once() is None


@pytest.mark.parametrize("name", ["metrics.jsonl", "weights/andnet.safetensors"])
def test_damaged_file(campaign: Campaign, name: str) -> None:
    assert campaign.damaged(name) is None


def test_campaign_continues(campaign: Campaign) -> None:
    """A case is done once; the table counts those that are left."""
    cases = campaign.cases(kills=200, seed=0)
    assert len({case.name for case in cases}) == len(cases)
    assert sum(case.kind.startswith("killed") for case in cases) == 200
    results = Results(campaign.folder / "results.jsonl", {"commit": ("a", False)})
    results.add(cases[0], None)
    results.add(cases[1], "differs")
    again = Results(campaign.folder / "results.jsonl", {"commit": ("a", False)})
    assert again.read() == {cases[0].name: None, cases[1].name: "differs"}
    assert Results(campaign.folder / "results.jsonl", {"commit": ("b", False)}).read() == {}
    first = Case("signal", "SIGHUP", "stopped_by")
    assert "| signal | 2 | 1 | 1 |" in table([first, Case("signal", "nohup", "stopped_by")], {first.name: "lost"})
