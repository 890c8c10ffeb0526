"""What MLflow has stored of a run; for tests."""

import hashlib
import re
import sys
from pathlib import Path

import mlflow


def runs(output_dir: Path) -> list[str]:
    """The ids of all that have this output directory."""
    if not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(f"sqlite:///{output_dir}/mlflow.db")
    [experiment] = [e for e in mlflow.search_experiments() if e.name != "Default"]
    found = mlflow.MlflowClient().search_runs(
        [experiment.experiment_id], f"params.output_dir = '{output_dir}'"
    )
    return [run.info.run_id for run in found]


def run_of(output_dir: Path) -> mlflow.entities.Run:
    run_id = (output_dir / "mlflow-run-id").read_text()
    assert run_id in runs(output_dir)
    return mlflow.get_run(run_id)


def scalars(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    run, client = run_of(output_dir), mlflow.MlflowClient()
    history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {key: sorted((point.step, point.value) for point in points) for key, points in history.items()}


def config(output_dir: Path) -> dict[str, str]:
    return run_of(output_dir).data.params


def pictures(output_dir: Path) -> list[int]:
    found = mlflow.artifacts.list_artifacts(run_id=run_of(output_dir).info.run_id, artifact_path="images")
    names = [Path(item.path).name for item in found]
    return sorted(int(re.findall(r"\Wstep\W(\d+)", name)[0]) for name in names if name.endswith(".png"))


def artifacts(output_dir: Path) -> dict[str, str]:
    run_id = run_of(output_dir).info.run_id
    names = [item.path for item in mlflow.artifacts.list_artifacts(run_id=run_id) if not item.is_dir]
    paths = {name: mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name) for name in names}
    return {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in paths.items()}


def status(output_dir: Path) -> str:
    return run_of(output_dir).info.status


def serve(folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """The command of a server, and the variables that lead a project to it."""
    folder.mkdir(exist_ok=True)
    stores = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/files"]
    command = [sys.executable, "-m", "mlflow", "server", *stores, f"--port={port}", "--workers=1"]
    variables = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    return command, variables | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # it starts faster
