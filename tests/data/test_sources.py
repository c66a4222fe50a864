"""Finding image files: folders, files, links, packages."""

import subprocess
import sys

import pytest
from packs import build, save_noise

from andfast.data.sources import find_images, resolve_source


def test_finds_files_folders_and_links(photos, tmp_path):
    folder, _ = photos
    single = tmp_path / "elsewhere" / "scan.dat"
    save_noise(single, format="PNG", seed=9)
    second = tmp_path / "other"
    save_noise(second / "a.png", seed=8)
    (second / "circle").symlink_to(second)
    (second / "linked").symlink_to(folder / "sub")
    files = find_images([folder, single, second, folder / "sub"])
    names = [file.name for file in files]
    # Two files are a.png relative to their sources and get their real paths; files reached twice are listed once.
    assert names == [
        "Füße 犬.bmp",
        str(folder / "a.png"),
        "sub/a.png",
        "sub/deep/b.TIFF",
        "scan.dat",
        str(second / "a.png"),
    ]
    assert build([folder, single, second], tmp_path / "pack").packed == 6


def test_lists_every_name_of_linked_files_and_folders(tmp_path):
    save_noise(tmp_path / "HR" / "a.png", seed=1)
    (tmp_path / "HR" / "b.png").symlink_to("a.png")
    (tmp_path / "LR").symlink_to(tmp_path / "HR")
    (tmp_path / "HR" / "circle").symlink_to(tmp_path)
    files = find_images([tmp_path], unique=False)
    assert [file.name for file in files] == ["HR/a.png", "HR/b.png", "LR/a.png", "LR/b.png"]
    assert {file.path for file in files} == {str(tmp_path / "HR" / "a.png")}
    assert [file.name for file in find_images([tmp_path])] == ["HR/a.png"]
    # Equal names of several sources get their paths.
    names = [file.name for file in find_images([tmp_path / "HR", tmp_path / "LR"], unique=False)]
    assert names == [str(tmp_path / folder / name) for folder in ("HR", "LR") for name in ("a.png", "b.png")]


def test_package_sources():
    files = find_images(["package:skimage/data"], include=["astronaut.png", "chelsea.png"])
    assert [file.name for file in files] == ["astronaut.png", "chelsea.png"]
    assert resolve_source("package:skimage/data/coffee.png").is_file()
    with pytest.raises(FileNotFoundError, match="'no_such_package', which is not installed"):
        resolve_source("package:no_such_package/data")
    with pytest.raises(FileNotFoundError, match="no folder or file 'nowhere'"):
        resolve_source("package:skimage/nowhere")
    for wrong in ("package:", "package:skimage.data", "package:/etc"):
        with pytest.raises(ValueError, match="top-level package"):
            resolve_source(wrong)


def test_package_sources_are_not_imported():
    code = (
        "import sys; from andfast.data.sources import resolve_source; resolve_source('package:skimage/data');"
        "assert 'skimage' not in sys.modules; import andfast.data.pack; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    save_noise(tmp_path / "photos" / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [file.name for file in find_images(["~/photos"])] == ["a.png"]
