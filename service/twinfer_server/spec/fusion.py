"""How the members' outputs become one, and when one member's is enough."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from .files import FolderFile, Name, Strict


class FusionSpec(Strict):
    """How the members' outputs become one; the method is found in the table of `twinfer_server.fusion`."""

    method: str
    weights: dict[Name, Annotated[FiniteFloat, Field(ge=0, le=1e6)]] = {}
    """By member; normalised to sum to 1. Empty means equal weights."""
    temperatures: dict[Name, Annotated[FiniteFloat, Field(ge=0.001, le=1000)]] = {}
    """By member: its logits are divided by it. A member that is left out has 1."""
    fitted: FolderFile | None = None
    """What `twinfer fit` has written, usually "fusion.json": its head and gate are used, and its weights and
    temperatures where this table has none of its own."""
    k: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """Reciprocal rank fusion's constant. Default: 60."""
    projection: FolderFile | None = None
    """A `.safetensors` file with `weight` [out, in] (and `bias` [out]) that the concatenation goes through."""
    query: Name | None = None
    """The member whose embedding is compared with the other's. Default: the first."""
    texts: FolderFile | None = None
    """Texts to compare with where the request brings none, one a line; as many as labels."""
    scale: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """What cosines are multiplied by before they become probabilities. Default: 100."""
    bias: FiniteFloat | None = None
    """What is added to the scaled cosines. Default: 0."""
    activation: Literal["softmax", "sigmoid"] | None = None
    """Whether the compared samples share one probability (as CLIP has it), or have one each (SigLIP). Default: softmax."""
    iou: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    """From which overlap two boxes of a class are one object. Default: 0.55."""
    min_score: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    """Below it a member's boxes are not looked at. Default: 0."""
    max_boxes: Annotated[int, Field(ge=1, le=1000)] | None = None
    """The most boxes of an answer. Default: 100."""


class CascadeSpec(Strict):
    """One member first, the others only for the rows of which it is not sure."""

    first: Name
    gate: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    """The calibrated confidence from which its answer stands alone. Default: what `twinfer fit` has found."""
