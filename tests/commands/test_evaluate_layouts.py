"""Pairs found in each benchmark's layout."""

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
    "div2k": (
        ["DIV2K_valid_HR/0801.png", "DIV2K_valid_HR/0802.png"],
        ["DIV2K_valid_LR_bicubic/X4/0801x4.png", "DIV2K_valid_LR_bicubic/X4/0802x4.png"],
        ["0801", "0802"],
    ),
    "basicsr": (
        ["Set5/GTmod12/baby.png", "Set5/GTmod12/bird.png"],
        ["Set5/LRbicx4/baby.png", "Set5/LRbicx4/bird.png"],
        ["baby", "bird"],
    ),
    "imagepairs": (["0001_gt.png", "0002_GT.png"], ["0001.png", "0002.png"], ["0001", "0002"]),
}


def make(root, files):
    """Create empty files; listing does not open them."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("name", TREES)
def test_layout_is_detected_and_selectable_by_name(name, tmp_path):
    hr, lr, names = TREES[name]
    make(tmp_path, hr + lr)
    for layout in ("auto", name):
        listing = find_pairs(tmp_path, layout=layout)
        assert listing.layout.name == name
        assert listing.scale == (2 if name == "imagepairs" else 4)
        assert [pair.name for pair in listing.pairs] == names
        assert [pair.hr for pair in listing.pairs] == [tmp_path / file for file in hr]
        assert [pair.lr for pair in listing.pairs] == [tmp_path / file for file in lr]
        assert not listing.problems
        assert not listing.ignored


@pytest.mark.parametrize("name", TREES)
def test_missing_counterpart_is_reported(name, tmp_path):
    hr, lr, names = TREES[name]
    make(tmp_path, [hr[0], lr[0], lr[1]])
    listing = find_pairs(tmp_path)
    assert listing.layout.name == name
    assert [pair.name for pair in listing.pairs] == [PurePosixPath(names[0]).name]
    (reason,) = listing.problems.values()
    assert reason == f"no HR image for {lr[1]}"
    (tmp_path / lr[1]).unlink()
    make(tmp_path, [hr[1]])
    if name != "imagepairs":  # there a plain number is LR
        assert list(find_pairs(tmp_path).problems.values()) == [f"no LR image (x4) for {hr[1]}"]


def test_other_scales_are_ignored(tmp_path):
    make(tmp_path, ["Canon/Test/4/Canon_001_HR.png", "Canon/Test/4/Canon_001_LR4.png"])
    make(tmp_path, ["Canon/Test/2/Canon_001_HR.png", "Canon/Test/2/Canon_001_LR2.png"])
    listing = find_pairs(tmp_path, scale=4)
    assert [pair.hr.parent.name for pair in listing.pairs] == ["4"]
    assert not listing.problems
    assert listing.ignored == 2
    assert [pair.hr.parent.name for pair in find_pairs(tmp_path, scale=2).pairs] == ["2"]


def test_other_scales_of_drealsr_and_compressed_super_bins_are_ignored(tmp_path):
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


def test_drealsr_with_equal_names_in_both_folders(tmp_path):
    make(tmp_path, ["test_HR/P1_x1.png", "test_LR/P1_x1.png"])
    assert [pair.name for pair in find_pairs(tmp_path).pairs] == ["P1"]


def test_realsr_in_hr_and_lr_folders(tmp_path):
    make(tmp_path, ["Test/4/HR/Canon_001_HR.png", "Test/4/LR/Canon_001_LR4.png"])
    listing = find_pairs(tmp_path)
    assert listing.layout.name == "realsr"
    assert [pair.name for pair in listing.pairs] == ["Canon_001"]


def test_folders_with_several_scales(tmp_path):
    make(tmp_path, ["HR/a.png", "LR/X2/a.png", "LR/X4/a.png"])
    (pair,) = find_pairs(tmp_path, scale=2).pairs
    assert pair.lr == tmp_path / "LR/X2/a.png"


def test_training_splits_are_ignored(tmp_path):
    make(tmp_path, ["Canon/Test/4/C_1_HR.png", "Canon/Test/4/C_1_LR4.png"])
    make(tmp_path, ["Canon/Train/4/C_2_HR.png", "Canon/Train/4/C_2_LR4.png"])
    listing = find_pairs(tmp_path)
    assert [pair.name for pair in listing.pairs] == ["C_1"]
    assert listing.ignored == 2
    assert [pair.name for pair in find_pairs(tmp_path / "Canon" / "Train").pairs] == ["C_2"]


def test_duplicate_candidates_are_reported(tmp_path):
    make(tmp_path, ["HR/a.png", "LR/a.png", "HR/b.png", "HR/b.jpg", "LR/b.png"])
    listing = find_pairs(tmp_path)
    assert [pair.name for pair in listing.pairs] == ["a"]
    assert listing.problems == {"b": "multiple HR images: HR/b.jpg, HR/b.png"}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_div2k_scales_training_split_and_other_tracks(scale, tmp_path):
    for split in ("train", "valid"):
        make(tmp_path, [f"DIV2K_{split}_HR/0801.png"])
        for factor in (2, 3, 4):
            make(tmp_path, [f"DIV2K_{split}_LR_bicubic/X{factor}/0801x{factor}.png"])
            make(tmp_path, [f"DIV2K_{split}_LR_unknown/X{factor}/0801x{factor}.png"])
    listing = find_pairs(tmp_path, scale=scale)
    (pair,) = listing.pairs
    assert listing.layout.name == "div2k"
    assert pair.hr == tmp_path / "DIV2K_valid_HR/0801.png"
    assert pair.lr == tmp_path / f"DIV2K_valid_LR_bicubic/X{scale}/0801x{scale}.png"
    assert not listing.problems


def test_edsr_benchmark_folders(tmp_path):
    for dataset, name in (("Set5", "baby"), ("B100", "3096"), ("Urban100", "img_001x4")):
        make(tmp_path, [f"benchmark/{dataset}/HR/{name}.png"])
        make(tmp_path, [f"benchmark/{dataset}/LR_bicubic/X{scale}/{name}x{scale}.png" for scale in (2, 4)])
    for scale in (2, 4):
        listing = find_pairs(tmp_path, scale=scale)
        assert [pair.name for pair in listing.pairs] == ["3096", "baby", "img_001x4"]
        assert all(pair.lr.name == f"{pair.name}x{scale}.png" for pair in listing.pairs)
        assert not listing.problems
    # Without the suffix and without a folder for the scale.
    make(tmp_path / "plain", ["HR/a.png", "LR_bicubic/a.png"])
    (pair,) = find_pairs(tmp_path / "plain").pairs
    assert pair.lr == tmp_path / "plain/LR_bicubic/a.png"


def test_basicsr_scales(tmp_path):
    make(tmp_path, ["Set14/original/a.png", "Set14/GTmod12/a.png", "Set14/LRbicx2/a.png", "Set14/LRbicx4/a.png"])
    for scale in (2, 4):
        listing = find_pairs(tmp_path, scale=scale)
        assert [pair.lr for pair in listing.pairs] == [tmp_path / f"Set14/LRbicx{scale}/a.png"]
        assert not listing.problems


def test_linked_files_are_pairs(tmp_path):
    make(tmp_path, ["HR/a.png", "LR/a.png", "LR/a_noise.png"])
    (tmp_path / "HR" / "a_noise.png").symlink_to("a.png")
    listing = find_pairs(tmp_path)
    assert [pair.name for pair in listing.pairs] == ["a", "a_noise"]
    assert listing.pairs[1].hr == tmp_path / "HR" / "a_noise.png"
    assert not listing.problems


def test_equal_basenames_keep_their_folders(tmp_path):
    make(tmp_path, ["one/HR/a.png", "one/LR/a.png", "two/HR/a.png", "two/LR/a.png"])
    assert [pair.name for pair in find_pairs(tmp_path).pairs] == ["one/a", "two/a"]


def test_rejects_missing_folder_no_pairs_and_unknown_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data must be an existing folder of pairs, was .*nowhere"):
        find_pairs(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no pairs found .*It contains no images"):
        find_pairs(tmp_path)
    make(tmp_path, ["photo.png"])
    with pytest.raises(ValueError, match=r"no pairs of scale 3 found .*folders: HR/NAME.*It contains photo.png"):
        find_pairs(tmp_path, scale=3)
    with pytest.raises(ValueError, match=r"layout must be one of auto, drealsr, .*was 'flickr'"):
        find_pairs(tmp_path, layout="flickr")


@given(
    path=st.lists(st.text("ab1x4_HRLRtesBin.", min_size=1, max_size=12), min_size=1, max_size=4),
    scale=st.integers(1, 8),
)
def test_layouts_accept_arbitrary_names(path, scale):
    relative = PurePosixPath(*path)
    if not relative.name:
        return
    for layout in LAYOUTS.values():
        match = layout.match(relative, scale)
        assert match is None or (match.role in {"hr", "lr", "other"} and match.key)
