"""Bytes on local disk: verified content, uploads in progress, and which repository holds what."""
