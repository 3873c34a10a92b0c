"""--track wandb, with the real client, which keeps on this machine what it would send."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lchp import TrainConfig
from lchp.config import to_dict
from lchp.errors import ConfigError
from lchp.evaluation.predictions import read_predictions
from lchp.files import runs
from lchp.tracking import required
from lchp.training.run import train


@pytest.fixture(autouse=True)
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The client, offline; imported here, since that takes a second in every process that collects this file."""
    client: Any = pytest.importorskip("wandb", reason="no wandb: pip install wandb")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    client.teardown()  # what it read of the environment before
    yield client
    client.teardown()


def records(folder: Path) -> Iterator[Any]:
    """What the client wrote for `wandb sync`, a log as LevelDB writes them: after a header of 7 bytes, blocks of 32 KiB
    with pieces of records, each of which begins with a checksum (4 bytes), its length (2) and its type (1)."""
    from wandb.proto import wandb_internal_pb2

    made: Any = wandb_internal_pb2  # its classes are built when it is imported
    (path,) = folder.glob("run-*.wandb")
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no room for another piece
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield made.Record.FromString(record)
            record = b""


def items(some: Any) -> dict[str, Any]:
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in some}


def test_a_run_that_is_resumed_is_one_run_with_all_of_it(
    squares_config: TrainConfig, squares_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], wandb: Any
) -> None:
    output = tmp_path / "mine"
    train(squares_config, output=output, stage="init", track=["wandb"])
    train(squares_config, output=output, resume=True, track=["wandb"])
    assert capfd.readouterr() == ("", "")
    wandb.teardown()  # waits until all is written
    sessions = sorted(path for path in (output / "wandb").glob("offline-run-*") if path.is_dir())
    assert len(sessions) == 2
    found = [record for session in sessions for record in records(session)]
    asked = [record.run for record in found if record.HasField("run")]
    run_id = runs.read_json(output / runs.TRACKERS / "wandb.json")["run"]
    assert {(run.run_id, run.project, run.display_name) for run in asked} == {(run_id, "lchp", "mine")}
    config = {k: v for run in asked for k, v in items(run.config.update).items()}
    config |= {k: v for record in found if record.HasField("config") for k, v in items(record.config.update).items()}
    expected = json.loads(json.dumps(to_dict(squares_config)))
    assert {name: config[name] for name in expected} == expected
    assert config["lchp"]["method"] == "LCHP"
    rows = [items(record.history.item) for record in found if record.HasField("history")]
    curves = {
        (name, row[f"{name.partition('/')[0]}/epoch"]): value
        for row in rows
        for name, value in row.items()
        if "/" in name
    }
    lines = runs.read_metrics(output)
    for line in lines:
        for name in line.keys() - {"stage", "epoch", "epochs"}:
            assert curves[f"{line['stage']}/{name}", line["epoch"]] == pytest.approx(line[name])
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    pictures = {value for (name, _), value in curves.items() if name.endswith("/boxes/path")}
    there = {path.relative_to(folder / "files").as_posix() for folder in sessions for path in folder.rglob("*.png")}
    assert pictures == there
    assert len(there) == 3
    summary: dict[str, Any] = {}
    for record in found:
        if record.HasField("summary"):
            summary |= items(record.summary.update)
    gt_known = runs.read_summary(output)["results"]["lchp_r"]["center_crop"]["gt_known"]
    assert summary["results/lchp_r/center_crop/gt_known"] == gt_known
    artifacts = [r.request.log_artifact.artifact for r in found if r.HasField("request")] + [
        record.artifact for record in found if record.HasField("artifact")
    ]
    files = {entry.path for artifact in artifacts for entry in artifact.manifest.contents}
    assert files >= {runs.CONFIG, runs.METRICS, runs.SUMMARY, runs.ENVIRONMENT}
    assert read_predictions(output).equals(read_predictions(squares_run))
    assert runs.read_summary(output) == runs.read_summary(squares_run)


def test_a_missing_account_is_said_before_anything_is_trained(
    squares_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb: Any
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    wandb.teardown()
    with pytest.raises(ConfigError, match=r"^--track wandb: no account; run wandb login, or set WANDB_API_KEY"):
        train(squares_config, output=tmp_path / "run", track=["wandb"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("WANDB_MODE", "ofline", "Settings: mode: Input should be 'online', 'offline'"),
        ("WANDB_API_KEY", "short", "WANDB_API_KEY invalid: API key must have 40"),
        ("WANDB_BASE_URL", "nonsense", "Settings: base_url: .*URL"),
    ],
)
def test_settings_that_the_client_refuses_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb: Any, variable: str, value: str, said: str
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    wandb.teardown()
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"^--track wandb: its client says: .*{said}[^\n]*$"):
        required(["wandb"])
