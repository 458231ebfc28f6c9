"""Load for a server, and what came of it: what `twinfer bench` runs. Needs the extra `bench`."""

from twinfer.load.loops import Load
from twinfer.load.rows import make_rows, read_rows
from twinfer.load.sweep import Measurement, Point, figures, measure
from twinfer.load.tally import Tally

__all__ = ["Load", "Measurement", "Point", "Tally", "figures", "make_rows", "measure", "read_rows"]
