"""Fixtures over the real image samples; they skip, saying so, where the samples are missing."""

import os
import tarfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the sample archives: $LCHP_TEST_DATA, or ../shared/data beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LCHP_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no sample images: {folder} is missing (LCHP_TEST_DATA names another folder)")
    return folder


@pytest.fixture(scope="session")
def weights_dir(shared_data: Path) -> Path:
    folder = shared_data / "weights"
    if not folder.is_dir():
        pytest.skip(f"no sample weights: {folder} is missing")
    return folder


@pytest.fixture(scope="session")
def cub50_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _unpack(shared_data / "cub50.tar", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny20_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _unpack(shared_data / "tiny20.tar", tmp_path_factory)


@pytest.fixture(scope="session")
def ilsvrc10_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _unpack(shared_data / "ilsvrc10.tar", tmp_path_factory)


def _unpack(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacks an archive with one top folder, and returns that folder."""
    if not archive.is_file():
        pytest.skip(f"no sample images: {archive} is missing")
    target = tmp_path_factory.mktemp(archive.stem)
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    (top,) = target.iterdir()
    return top
