"""What TensorBoard finds of a run; for tests."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def events(output_dir: Path) -> EventAccumulator:
    reader = EventAccumulator(str(output_dir), size_guidance={"scalars": 0, "images": 0})
    return reader.Reload()


def scalars(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    reader = events(output_dir)
    return {key: [(e.step, e.value) for e in reader.Scalars(key)] for key in reader.Tags()["scalars"]}


def config(output_dir: Path) -> dict[str, str]:
    [event] = events(output_dir).Tensors("config/text_summary")
    [table] = event.tensor_proto.string_val
    rows = [line.strip("| ").split(" | ", 1) for line in table.decode().splitlines()[2:]]
    return {row[0]: row[1] for row in rows}


def pictures(output_dir: Path) -> list[int]:
    reader = events(output_dir)
    return [event.step for tag in reader.Tags()["images"] for event in reader.Images(tag)]
