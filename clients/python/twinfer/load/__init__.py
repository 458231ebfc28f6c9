"""Load for a server, and what came of it: what `twinfer bench` runs. Needs the extra `bench`."""

from twinfer.load.agreement import Agreement
from twinfer.load.loops import Load
from twinfer.load.picture import draw
from twinfer.load.record import describe
from twinfer.load.rows import read_rows
from twinfer.load.samples import make_samples
from twinfer.load.sweep import Measurement, Point, run
from twinfer.load.tally import Tally

__all__ = ["Agreement", "Load", "Measurement", "Point", "Tally", "describe", "draw", "make_samples", "read_rows", "run"]
