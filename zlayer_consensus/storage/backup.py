"""Backups: the format of the file, and a new cluster's directories out of it. ``docs/backup.rst`` describes both."""

from ._backup import BACKUP_DIGEST_BYTES, BackupDamage, BackupFile, BackupHeader, encode_backup_head
from ._restore import NewMember, restore_backup

__all__ = [
    "BACKUP_DIGEST_BYTES",
    "BackupDamage",
    "BackupFile",
    "BackupHeader",
    "NewMember",
    "encode_backup_head",
    "restore_backup",
]
