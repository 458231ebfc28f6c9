"""Draws docs/dashboard.png: the panels of the Grafana dashboard, as Prometheus answers their queries about a loaded server.

.venv/bin/python -m docs.dashboard_picture      # takes two minutes; Debian's package prometheus has Prometheus
"""

import io
import itertools
import math
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image

from tests.calls import connect, disable_member
from tests.prometheus import SCRAPE_SECONDS, Panel, Prometheus, fill_in, read_panels, scraping
from tests.servers import DIGITS, running
from twinfer import Client
from twinfer.errors import TwinferError
from twinfer.v1 import ensemble_admin_service_pb2 as admin_pb
from twinfer.v1 import ensemble_admin_service_pb2_grpc as admin_grpc
from twinfer.v1.ensemble_pb2 import BREAKER_STATE_CLOSED
from twinfer_server.demo import read_rows

PICTURE = Path(__file__).with_name("dashboard.png")
UNITS = {"s": "s", "bytes": "B", "reqps": "/s", "ops": "/s", "percentunit": "", "short": ""}
PHASE_SECONDS = 20.0
NO_DATA = "no data: what a GPU has"


@contextmanager
def asking(address: str, callers: int, *, badly: bool = False) -> Iterator[None]:
    """Have callers ask all the time, one of them now and then for what is not there."""
    rows, done = read_rows(DIGITS), threading.Event()

    def ask(number: int) -> None:
        with Client(address) as client:
            for turn, row in enumerate(itertools.cycle(rows)):
                if done.is_set():
                    return
                wrong = badly and number == 0 and turn % 4 == 0
                with suppress(TwinferError):
                    client.infer({"image": b"no image"} if wrong else {"image": row.image, "text": row.text})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    yield
    done.set()
    for thread in threads:
        thread.join()


def load(address: str, admin_address: str) -> None:
    """Ask a little, much, badly, without a member, and with another fusion."""
    with asking(address, 1):
        time.sleep(PHASE_SECONDS)
    with asking(address, 16, badly=True):
        time.sleep(PHASE_SECONDS)
    disable_member(admin_address, "language")
    with asking(address, 4):
        time.sleep(PHASE_SECONDS)
    with connect(admin_address) as channel, asking(address, 8):
        stub = admin_grpc.EnsembleAdminServiceStub(channel)
        stub.SetMember(admin_pb.SetMemberRequest(member="language", breaker_state=BREAKER_STATE_CLOSED))
        stub.UpdateFusion(admin_pb.UpdateFusionRequest(weights={"vision": 1.0, "language": 3.0}))
        time.sleep(PHASE_SECONDS)


def draw_panel(axes: Axes, panel: Panel, prometheus: Prometheus, began: float, ended: float) -> None:
    """Draw what Prometheus answers to a panel's queries, a line for each series."""
    axes.set_title(panel.title, fontsize=8, loc="left")
    axes.tick_params(labelsize=6)
    if unit := UNITS[panel.unit]:
        axes.yaxis.set_major_formatter(EngFormatter(unit, sep=" "))
    for expression, legend in panel.queries:
        answer: Any = prometheus.get(
            "/api/v1/query_range", query=fill_in(expression, "6s"), start=began, end=ended, step=SCRAPE_SECONDS
        )
        for series in answer["result"]:
            label = legend
            for name, value in series["metric"].items():
                label = label.replace(f"{{{{{name}}}}}", value)
            label = label.split("/")[-1].removesuffix(series["metric"].get("instance", "")).strip() or "server"
            points = [(float(at) - began, float(value)) for at, value in series["values"]]
            axes.plot(*zip(*[point for point in points if math.isfinite(point[1])], strict=True), linewidth=1, label=label)
    if axes.lines:
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=5, framealpha=0.7, edgecolor="none")
    else:
        axes.text(0.5, 0.5, NO_DATA, ha="center", va="center", fontsize=7, color="gray", transform=axes.transAxes)


def draw(prometheus: Prometheus, began: float, ended: float) -> Image.Image:
    """Draw all panels, row by row as the dashboard has them."""
    mpl.rcParams["axes.spines.top"] = mpl.rcParams["axes.spines.right"] = False
    rows = {row: list(panels) for row, panels in itertools.groupby(read_panels(), key=lambda panel: panel.row)}
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(2.6 * columns, 1.9 * len(rows)), dpi=80, layout="constrained")
    for places, (row, panels) in zip(figure.subplots(len(rows), columns), rows.items(), strict=True):
        for axes, panel in itertools.zip_longest(places, panels):
            if panel is None:
                axes.set_axis_off()
            else:
                draw_panel(axes, panel, prometheus, began, ended)
        places[0].set_ylabel(row, fontsize=9, fontweight="bold")
    content = io.BytesIO()
    figure.savefig(content)
    return Image.open(content).convert("RGB")


def main() -> None:
    """Load a server, and draw what Prometheus has of it."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        running(DIGITS, metrics_listen="127.0.0.1:0", admin_listen="127.0.0.1:0") as server,
        scraping(server.metrics_address, Path(scratch)) as prometheus,
    ):
        began = time.time()
        load(server.address, server.admin_address)
        picture = draw(prometheus, began, time.time())
    picture.quantize(48, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")  # noqa: T201


if __name__ == "__main__":
    main()
