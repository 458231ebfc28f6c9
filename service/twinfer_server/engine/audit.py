"""The audit log: who changed what answers are made of, from what to what. A logger of its own, `twinfer_server.audit`."""

import json
import logging

from ..executor import FusionVersion
from ..types import ANONYMOUS

logger = logging.getLogger("twinfer_server.audit")


def audit(caller: str, changed: str, before: object, after: object) -> None:
    """Log one line on a change that an operator has made; as JSON lines it has fields of these names."""
    fields = {"caller": caller or ANONYMOUS, "changed": changed, "before": before, "after": after}
    texts = (json.dumps(value) for value in (before, after))
    logger.info("%s changed %s from %s to %s", fields["caller"], changed, *texts, extra={"fields": fields})


def describe_version(version: FusionVersion) -> dict[str, object]:
    """Describe a fusion as its file would, with its version."""
    return {"version": version.number, **version.spec.fusion.model_dump(exclude_none=True, exclude_defaults=True, mode="json")}
