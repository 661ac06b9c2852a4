"""The main job from the first command to the last row, in an empty folder, as a new user would do it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL

TRADES = "spot_1INCHUSDT_2025-05-19.csv"
EXECUTION = "ws_execution_linear.json"
SCRIPT = Path(__file__).with_name("main_job.py")


@pytest.fixture
def real_or_like_it(tmp_path: Path) -> tuple[Path, Path, int]:
    """The exchange's own files where $GRIDBOT_TEST_DATA says they are, else rows in the same formats."""
    folder = os.environ.get("GRIDBOT_TEST_DATA")
    if folder:
        trades, execution = Path(folder) / TRADES, Path(folder) / EXECUTION
        assert trades.is_file(), "GRIDBOT_TEST_DATA is set, and the trades are not there"
        assert execution.is_file(), "GRIDBOT_TEST_DATA is set, and the execution is not there"
        return trades, execution, 6682
    trades, execution = tmp_path / "trades.csv", tmp_path / "execution.json"
    rows = [
        f"{number},{1747612836878 + number * 37},{'0.2271' if number % 3 else '0.22709999'},{number}.16,"
        f"{'buy' if number % 2 else 'sell'},0"
        for number in range(1, 2001)
    ]
    trades.write_text("id,timestamp,price,volume,side,rpi\n" + "\n".join(rows) + "\n")
    fill = {"symbol": SCRIPT.stem[:4], "execId": "e-1", "orderId": "o-1", "orderLinkId": "", "side": "Sell"}
    fill |= {"execPrice": "95900.1", "execQty": "0.5", "execFee": "-26.37252750", "execTime": "1746270400353"}
    execution.write_text(json.dumps({"topic": "execution", "data": [fill]}))
    return trades, execution, len(rows)


def run(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    """Run Python in `folder` with nothing of GRIDBOT_* but `environment`; its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRIDBOT_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def whole_job(folder: Path, environment: dict[str, str], files: tuple[Path, Path, int]) -> None:
    """init_db, the script, and init_db again, which counts the rows."""
    trades, execution, count = files
    assert "Database initialized successfully" in run(folder, environment, "-m", "shared.db.init_db")
    said = run(folder, environment, str(SCRIPT), str(trades), str(execution))
    assert said == f"stored and read back {count} trades and 1 execution\n"
    rows = dict(line.split()[:2] for line in run(folder, environment, "-m", "shared.db.init_db").splitlines()[2:])
    assert rows["public_trades"] == f"{count:,}"
    assert (rows["users"], rows["runs"], rows["private_executions"]) == ("2", "2", "1")


def test_the_main_job_runs_on_the_embedded_default(tmp_path: Path, real_or_like_it: tuple[Path, Path, int]) -> None:
    """With no setting at all, in an empty folder, everything lands in grid_bot.db there and comes back as it was."""
    folder = tmp_path / "empty"
    folder.mkdir()
    whole_job(folder, {}, real_or_like_it)
    assert (folder / "grid_bot.db").is_file()


def test_the_main_job_runs_on_postgresql(
    tmp_path: Path, empty_postgresql_url: URL, real_or_like_it: tuple[Path, Path, int]
) -> None:
    """The same script, the same rows, with one variable set."""
    url = empty_postgresql_url.render_as_string(hide_password=False)
    whole_job(tmp_path, {"GRIDBOT_DB_URL": url}, real_or_like_it)
