"""Which files of a folder become pairs, in every benchmark's layout."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andfast.evaluation.layouts import LAYOUTS, find_pairs

TREES = {
    "drealsr": (
        ["Test_x4/test_HR/DSC_1_x4.png", "Test_x4/test_HR/sony_2_x4.png"],
        ["Test_x4/test_LR/DSC_1_x1.png", "Test_x4/test_LR/sony_2_x1.png"],
        ["DSC_1", "sony_2"],
    ),
    "realsr": (
        ["Canon/Test/4/Canon_001_HR.png", "Nikon/Test/4/Nikon_001_HR.png"],
        ["Canon/Test/4/Canon_001_LR4.png", "Nikon/Test/4/Nikon_001_LR4.png"],
        ["Canon_001", "Nikon_001"],
    ),
    "super": (
        ["books/local/Bin1/0000.png", "coffee/local/Bin1/0000.png"],
        ["books/local/Bin4/0000.png", "coffee/local/Bin4/0000.png"],
        ["books/local/0000", "coffee/local/0000"],
    ),
    "folders": (["HR/a.png", "HR/sub/b.jpg"], ["LR/a.png", "LR/sub/b.png"], ["a", "b"]),
    "imagepairs": (["0001_gt.png", "0002_GT.png"], ["0001.png", "0002.png"], ["0001", "0002"]),
}


def make(root, files):
    """Empty files: a listing opens none."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("name", TREES)
def test_every_layout_is_recognised_by_itself_and_by_name(name, tmp_path):
    hr, lr, names = TREES[name]
    make(tmp_path, hr + lr)
    for layout in ("auto", name):
        found = find_pairs(tmp_path, layout=layout)
        assert found.layout.name == name
        assert found.scale == (2 if name == "imagepairs" else 4)
        assert [pair.name for pair in found.pairs] == names
        assert [pair.hr for pair in found.pairs] == [tmp_path / file for file in hr]
        assert [pair.lr for pair in found.pairs] == [tmp_path / file for file in lr]
        assert not found.problems
        assert not found.ignored


@pytest.mark.parametrize("name", TREES)
def test_a_missing_twin_is_reported_by_name_on_either_side(name, tmp_path):
    hr, lr, names = TREES[name]
    make(tmp_path, [hr[0], lr[0], lr[1]])
    found = find_pairs(tmp_path)
    assert found.layout.name == name
    assert [pair.name for pair in found.pairs] == [PurePosixPath(names[0]).name]
    (reason,) = found.problems.values()
    assert reason == f"no HR picture beside {lr[1]}"
    (tmp_path / lr[1]).unlink()
    make(tmp_path, [hr[1]])
    if name != "imagepairs":  # a lone number is LR there
        assert list(find_pairs(tmp_path).problems.values()) == [f"no LR picture (x4) beside {hr[1]}"]


def test_other_scales_are_no_missing_twins(tmp_path):
    make(tmp_path, ["Canon/Test/4/Canon_001_HR.png", "Canon/Test/4/Canon_001_LR4.png"])
    make(tmp_path, ["Canon/Test/2/Canon_001_HR.png", "Canon/Test/2/Canon_001_LR2.png"])
    found = find_pairs(tmp_path, scale=4)
    assert [pair.hr.parent.name for pair in found.pairs] == ["4"]
    assert not found.problems
    assert found.ignored == 2
    assert [pair.hr.parent.name for pair in find_pairs(tmp_path, scale=2).pairs] == ["2"]


def test_other_scales_of_drealsr_and_compressed_bins_of_super(tmp_path):
    for scale in (2, 3, 4):
        make(tmp_path / "d", [f"Test_x{scale}/test_HR/IMG_1_x{scale}.png", f"Test_x{scale}/test_LR/IMG_1_x1.png"])
        make(tmp_path / "s", [f"scene/pan/Bin{scale}/0001.png", f"scene/pan/Bin{scale}QP10/0001.png"])
    make(tmp_path / "s", ["scene/pan/Bin1/0001.png"])
    for folder in ("d", "s"):
        for scale in (2, 3, 4):
            (pair,) = find_pairs(tmp_path / folder, scale=scale).pairs
            assert str(scale) in str(pair.lr.relative_to(tmp_path))
            assert "QP" not in str(pair.lr)
            assert not find_pairs(tmp_path / folder, scale=scale).problems


def test_drealsr_with_one_name_in_both_folders(tmp_path):
    make(tmp_path, ["test_HR/P1_x1.png", "test_LR/P1_x1.png"])
    assert [pair.name for pair in find_pairs(tmp_path).pairs] == ["P1"]


def test_realsr_sorted_into_hr_and_lr_folders(tmp_path):
    make(tmp_path, ["Test/4/HR/Canon_001_HR.png", "Test/4/LR/Canon_001_LR4.png"])
    found = find_pairs(tmp_path)
    assert found.layout.name == "realsr"
    assert [pair.name for pair in found.pairs] == ["Canon_001"]


def test_lr_folders_of_several_scales(tmp_path):
    make(tmp_path, ["HR/a.png", "LR/X2/a.png", "LR/X4/a.png"])
    (pair,) = find_pairs(tmp_path, scale=2).pairs
    assert pair.lr == tmp_path / "LR/X2/a.png"


def test_training_parts_are_left_out(tmp_path):
    make(tmp_path, ["Canon/Test/4/C_1_HR.png", "Canon/Test/4/C_1_LR4.png"])
    make(tmp_path, ["Canon/Train/4/C_2_HR.png", "Canon/Train/4/C_2_LR4.png"])
    found = find_pairs(tmp_path)
    assert [pair.name for pair in found.pairs] == ["C_1"]
    assert found.ignored == 2
    assert [pair.name for pair in find_pairs(tmp_path / "Canon" / "Train").pairs] == ["C_2"]


def test_two_candidates_are_a_problem(tmp_path):
    make(tmp_path, ["HR/a.png", "LR/a.png", "HR/b.png", "HR/b.jpg", "LR/b.png"])
    found = find_pairs(tmp_path)
    assert [pair.name for pair in found.pairs] == ["a"]
    assert found.problems == {"b": "several HR pictures: HR/b.jpg, HR/b.png"}


def test_equal_names_keep_their_folders(tmp_path):
    make(tmp_path, ["one/HR/a.png", "one/LR/a.png", "two/HR/a.png", "two/LR/a.png"])
    assert [pair.name for pair in find_pairs(tmp_path).pairs] == ["one/a", "two/a"]


def test_no_pairs_no_folder_no_such_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data must be a folder of pairs, there is none at .*nowhere"):
        find_pairs(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no pairs .*no pictures"):
        find_pairs(tmp_path)
    make(tmp_path, ["photo.png"])
    with pytest.raises(ValueError, match=r"holds no pairs of scale 3 .*folders: HR/NAME.*It holds photo.png"):
        find_pairs(tmp_path, scale=3)
    with pytest.raises(ValueError, match=r"layout must be auto, drealsr, .*was 'div2k'"):
        find_pairs(tmp_path, layout="div2k")


@given(
    path=st.lists(st.text("ab1x4_HRLRtesBin.", min_size=1, max_size=12), min_size=1, max_size=4),
    scale=st.integers(1, 8),
)
def test_no_name_upsets_a_layout(path, scale):
    relative = PurePosixPath(*path)
    if not relative.name:
        return
    for layout in LAYOUTS.values():
        place = layout.place(relative, scale)
        assert place is None or (place.role in {"hr", "lr", "other"} and place.key)
