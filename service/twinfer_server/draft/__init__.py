"""What `twinfer init` does: make an ensemble folder of models that a user has, with a file that explains itself."""

from .draft import CannotDraft, MemberDraft, draft_member, draft_towers, write_folder

__all__ = ["CannotDraft", "MemberDraft", "draft_member", "draft_towers", "write_folder"]
