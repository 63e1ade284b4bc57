"""Bytes on local disk: verified content, fills in progress, the room of uploads, and what each repository holds."""
