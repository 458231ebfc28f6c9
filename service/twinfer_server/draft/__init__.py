"""Drafting: `twinfer init` makes an ensemble folder of models that people have, with a file that explains itself."""

from .draft import CannotDraft, MemberDraft, draft_member, draft_towers
from .folder import write_folder

__all__ = ["CannotDraft", "MemberDraft", "draft_member", "draft_towers", "write_folder"]
