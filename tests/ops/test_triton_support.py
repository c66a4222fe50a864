"""Triton's C compiler and headers: a missing one is a reason, and "auto" logs what it takes instead."""

import logging
import shutil
import sys
import sysconfig

import pytest
import torch

from andfast.functional import dispatch, triton_support


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU of compute capability 8.0, as far as Triton's check goes."""
    triton_support._why_not_here.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: (8, 0))
    monkeypatch.setattr(dispatch, "_logged", set())
    yield monkeypatch
    triton_support._why_not_here.cache_clear()


def without_compiler(monkeypatch):
    which = shutil.which
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("gcc", "clang") else which(name))
    return "Triton needs a C compiler, and there is no gcc or clang on the PATH and no CC"


def with_a_wrong_compiler(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    return "Triton needs a C compiler, and CC='no-such-compiler' does not exist"


def without_headers(monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda **_: {"include": "/no/such/folder"})
    return "Triton needs Python's headers, and /no/such/folder/Python.h is missing"


@pytest.mark.parametrize("remove", [without_compiler, with_a_wrong_compiler, without_headers])
def test_missing_build_tools_are_a_reason(gpu, caplog, remove):
    reason = remove(gpu)
    with pytest.raises(RuntimeError, match="impl='triton' of mean_distance is not available: " + reason):
        dispatch.resolve("mean_distance", "triton", "cuda")
    with caplog.at_level(logging.WARNING):
        assert dispatch.resolve("mean_distance", "auto", "cuda") == "reference"
        assert dispatch.resolve("mean_distance", "auto", "cuda") == "reference"
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"impl='triton' of mean_distance is not available: {reason}")
    assert message.endswith("auto takes 'reference'")


def test_a_compiler_and_headers_suffice(gpu, tmp_path):
    (tmp_path / "Python.h").touch()
    gpu.setenv("CC", sys.executable)
    gpu.setattr(sysconfig, "get_paths", lambda **_: {"include": str(tmp_path)})
    assert dispatch.resolve("mean_distance", "auto", "cuda") == "triton"


def test_auto_on_the_cpu_is_silent(caplog):
    with caplog.at_level(logging.WARNING):
        assert dispatch.resolve("mean_distance", "auto", "cpu") == "reference"
    assert not caplog.records
