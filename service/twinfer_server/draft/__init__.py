"""The tool behind `twinfer init`: from models that you have to an ensemble folder that explains itself."""

from .draft import draft_member
from .folder import check_folder, write_folder
from .lines import Asked
from .member import CannotDraft, MemberDraft
from .towers import draft_towers

__all__ = ["Asked", "CannotDraft", "MemberDraft", "check_folder", "draft_member", "draft_towers", "write_folder"]
