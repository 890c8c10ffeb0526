"""What wandb has written of a run without a network, to be sent by `wandb sync`; for tests."""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768  # bytes; a record's pieces have a header each, of CRC, length and kind


def records(output_dir: Path) -> Iterator[Record]:
    """Of the newest part, as each holds the whole run; all have one id."""
    files = sorted(output_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1
    data, at, whole = files[-1].read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of one, or its end
            yield Record.FromString(whole)
            whole = b""


def history(output_dir: Path) -> Iterator[tuple[int, list[str], object]]:
    """Step, name in one or several parts, and value."""
    for record in records(output_dir):
        for item in record.history.item:
            yield record.history.step.num, [item.key] if item.key else item.nested_key, json.loads(
                item.value_json
            )


def scalars(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for step, key, value in history(output_dir):
        if len(key) == 1 and not key[0].startswith("_"):
            found.setdefault(key[0], []).append((step, value))
    return found


def config(output_dir: Path) -> dict[str, object]:
    updates = [item for record in records(output_dir) for item in record.run.config.update]
    return {item.key: json.loads(item.value_json) for item in updates if not item.key.startswith("_")}


def status(output_dir: Path) -> str:
    [code] = [record.exit.exit_code for record in records(output_dir) if record.HasField("exit")]
    return "FAILED" if code else "FINISHED"


def pictures(output_dir: Path) -> list[int]:
    return [step for step, key, _ in history(output_dir) if key == ["pictures", "path"]]


def artifacts(output_dir: Path) -> dict[str, str]:
    sent = [record.request.log_artifact.artifact for record in records(output_dir)]
    sent += [record.artifact for record in records(output_dir)]
    entries = {f"{item.name}/{entry.path}": entry for item in sent for entry in item.manifest.contents}
    return {
        name: hashlib.sha256(Path(entry.local_path).read_bytes()).hexdigest()
        for name, entry in entries.items()
    }
