"""Model folders that are damaged, incomplete, foreign, newer or malign: one line that names the file and what to do, or
read as they are; never a traceback."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import fuzzed
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import lchp
from lchp.cli import main
from lchp.config import TrainConfig
from lchp.deploy.model_folder import ABOUT, CARD, SUMS, load_model
from lchp.deploy.predict import find_images, predict
from lchp.deploy.publish import publish
from lchp.errors import RunError
from lchp.files.runs import CONFIG

CPU = torch.device("cpu")
READ = (ABOUT, CONFIG, SUMS, "classifier.safetensors", "teacher.safetensors", "localizer.safetensors")


@pytest.fixture(scope="module")
def whole(squares_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model. Tests only read it."""
    folder = tmp_path_factory.mktemp("models") / "whole"
    publish(squares_run, folder)
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def summed(model: Path) -> None:
    """Checksums that are right, whatever the files hold now."""
    files = sorted(path for path in model.iterdir() if path.name != SUMS)
    lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    (model / SUMS).write_text("".join(lines))


def refusal(model: Path, photos: Path | None = None) -> str | None:
    """The line that a model is refused with, which begins with its folder; None for one that predicts."""
    try:
        trained = load_model(model, CPU)
        if photos is not None:
            assert len(list(predict(trained, islice(find_images(photos), 2)))) == 2
    except RunError as error:
        said = str(error)
    else:
        return None
    assert said.startswith(str(model))
    assert said.isprintable()
    return said.removeprefix(str(model))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("blobs/none")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "gone": (
        Path.unlink,
        ("is missing; copy or download the model again", "no such file; model is no model of lchp's"),
    ),
    "empty": (lambda p: p.write_bytes(b""), ("checksum differs from SHA256SUMS", "cannot be read", "lacks lchp.json")),
    "cut": (
        lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
        (
            "checksum differs from SHA256SUMS: it was changed or damaged; copy or",
            "cannot be read",
            "a file's name; copy",
        ),
    ),
    "a bit": (
        _flip,
        ("checksum differs from SHA256SUMS: it was changed", "cannot be read", "expected a SHA-256", "lacks"),
    ),
    "a folder": (_folder, ("cannot be read (not a regular file); copy or download the model again",)),
    "a pipe": (_pipe, ("cannot be read (not a regular file); copy or download the model again",)),
    "a link to nothing": (_link_to_nothing, ("is missing; copy or download the model again",)),
    "a pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        (
            "is what Git LFS puts in a file's place; git lfs pull fetches the file",
            "cannot be read",
            "expected a SHA-256",
        ),
    ),
}


@pytest.mark.parametrize("file", READ)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_with_what_to_do(model: Path, file: str, damage: str) -> None:
    change, expected = DAMAGE[damage]
    change(model / file)
    said = refusal(model)
    assert said is not None
    assert any(text in said for text in expected), said
    assert said.startswith((f"/{file}: ", f"/{file}:1: ")) or file in (SUMS,), said


def test_what_is_not_read_may_be_changed(model: Path, squares_root: Path) -> None:
    """A card is its owner's to edit, and a hub puts files of its own there."""
    (model / CARD).write_text("mine")
    (model / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    (model / "pytorch_model.bin").write_bytes(b"never read")
    assert refusal(model, squares_root) is None


def test_every_edit_of_what_it_says_of_itself_is_refused_in_one_line_or_fits(model: Path, squares_root: Path) -> None:
    about = json.loads((model / ABOUT).read_text())
    refused = [_edited(model, ABOUT, record, squares_root) for _, record in fuzzed(about)]
    assert sum(said is not None for said in refused) > 100
    assert any(said is None for said in refused)


def _edited(model: Path, file: str, record: Any, photos: Path) -> str | None:
    (model / file).write_text(json.dumps(record))
    summed(model)
    said = refusal(model, photos)
    assert said is None or said.startswith((f"/{file}: ", "/classifier.safetensors: does not fit")), said
    return said


def test_an_edited_config_is_refused_in_one_line_or_fits(model: Path, squares_root: Path) -> None:
    config = json.loads((model / CONFIG).read_text())
    for _, record in islice(fuzzed(config), 0, None, 41):
        (model / CONFIG).write_text(json.dumps(record))
        summed(model)
        refusal(model, squares_root)


def test_bytes_that_were_changed_on_purpose_are_refused_in_one_line_or_fit(model: Path, squares_root: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    for turn in range(60):
        path = model / READ[3 + turn % 3]
        content = bytearray(whole := path.read_bytes())
        within = min(len(content), 4000) if turn % 2 else len(content)  # its header, every second time
        for place in torch.randint(within, (4,), generator=draw).tolist():
            content[place] = int(torch.randint(256, (1,), generator=draw))
        path.write_bytes(content)
        summed(model)
        refusal(model, squares_root)
        path.write_bytes(whole)


def _states() -> Iterator[tuple[str, Callable[[dict[str, Tensor]], object]]]:
    strides = "trunk._extra_state"
    yield "no strides", lambda s: s.pop(strides)
    for n, value in enumerate((0, -1, 2**40, 1.5, float("inf"))):
        yield f"strides {n}", lambda s, v=value: s.update({strides: torch.full_like(s[strides], 1) * v})
    yield "strides of another shape", lambda s: s.update({strides: torch.ones(3, dtype=torch.int64)})
    yield "lacking", lambda s: s.pop("linear.weight")
    yield "more", lambda s: s.update(more=torch.zeros(2))
    yield "other classes", lambda s: s.update({"linear.weight": torch.zeros(9, s["linear.weight"].shape[1])})
    yield "not finite", lambda s: s["linear.weight"].fill_(torch.nan)
    yield "bool", lambda s: s.update({"linear.weight": s["linear.weight"] > 0})
    yield "float8", lambda s: s.update({"linear.weight": s["linear.weight"].to(torch.float8_e4m3fn)})


@pytest.mark.parametrize(("name", "change"), list(_states()), ids=lambda value: value if isinstance(value, str) else "")
def test_states_that_do_not_fit_are_refused_in_one_line(
    model: Path, squares_root: Path, name: str, change: Callable[[dict[str, Tensor]], object]
) -> None:
    path = model / "classifier.safetensors"
    with safe_open(path, "pt") as file:
        state, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    change(state)
    save_file(state, path, metadata)
    summed(model)
    said = refusal(model, squares_root)
    assert (said is None) == (name in ("bool", "float8")), said


@pytest.mark.parametrize("versions", [None, "", "[]", '{"": "2"}', '{"": 1.5}'])
def test_a_file_without_versions_of_its_modules_is_refused(model: Path, versions: str | None) -> None:
    path = model / "classifier.safetensors"
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(state, path, None if versions is None else {"versions": versions})
    summed(model)
    assert str(refusal(model)).startswith(
        "/classifier.safetensors: its metadata lacks the versions of its modules; copy"
    )


def test_a_newer_model_asks_for_a_newer_lchp(model: Path) -> None:
    """Whatever else of it is new."""
    about, config = (json.loads((model / name).read_text()) for name in (ABOUT, CONFIG))
    (model / ABOUT).write_text(json.dumps({"format": "lchp model", "version": 2, "networks": []}))
    (model / SUMS).unlink()
    assert refusal(model) == "/lchp.json: version 2, and this lchp reads 1; update lchp"
    (model / ABOUT).write_text(json.dumps(about | {"lchp": "9.0.0"}))
    (model / CONFIG).write_text(json.dumps(config | {"method": config["method"] | {"name": "of_tomorrow"}}))
    summed(model)
    said = refusal(model)
    assert said is not None
    assert said.startswith("/config.json: method.name = 'of_tomorrow': expected lchp, boxes, ")
    assert said.endswith(f"; it is of lchp 9.0.0, this is {lchp.__version__}: update lchp")
    (model / CONFIG).write_text(json.dumps(config | {"of_tomorrow": 1}))
    summed(model)
    assert str(refusal(model)).startswith("/config.json: of_tomorrow: no such field; it is of lchp 9.0.0, this is")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (CONFIG, b'{"architectures": ["ResNet"]}', "/lchp.json: no such file; model is no model of lchp's, or lacks"),
        (ABOUT, b'{"format": "layers-model"}', "/lchp.json: is of no model of lchp's; name a folder that lchp publish"),
        (ABOUT, b"[1]", "/lchp.json: is of no model of lchp's; name a folder that lchp publish"),
    ],
)
def test_a_foreign_folder_is_no_model(
    tmp_path: Path, squares_root: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, expected: str
) -> None:
    (folder := tmp_path / "model").mkdir()
    (folder / name).write_bytes(content)
    for command in (["predict", str(squares_root)], ["export", "--output", str(tmp_path / "out.pt")]):
        assert main([*command, "--model", str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"lchp: error: {folder}{expected}")
    assert main(["predict", str(squares_root), "--model", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"lchp: error: {tmp_path / 'none'}: no such model folder\n"


def test_the_places_that_a_stranger_s_config_names_are_not_read(model: Path, squares_config: TrainConfig) -> None:
    config = json.loads((model / CONFIG).read_text())
    config["data"] |= {"root": str(squares_config.data.root), "cache": "/etc"}
    config["model"] |= {"pretrained": True, "weights_dir": "/nowhere"}
    (model / CONFIG).write_text(json.dumps(config))
    summed(model)
    found = load_model(model, CPU).config
    assert (found.data.root, found.data.cache, found.model.weights_dir) == (None, "auto", None)
