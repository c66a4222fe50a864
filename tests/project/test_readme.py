"""README.md's Python examples run as they stand."""

import re
from pathlib import Path

import pytest

from andfast.nn import RRDBNet
from andfast.nn.weights import save_weights

README = Path(__file__).resolve().parents[2] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "runs/andnet_x4/weights/andnet.safetensors"  # what training would have left
    weights.parent.mkdir(parents=True)
    save_weights(weights, RRDBNet(features=8, blocks=1, growth=4))
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], f"README.md, Python example {number + 1}", "exec"), {})
