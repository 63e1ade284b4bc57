"""Bytes on local disk: verified content, fills in progress, uploads, and what each repository holds."""
