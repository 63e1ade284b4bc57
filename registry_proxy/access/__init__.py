"""Permissions: identities, tokens, grants and the decision over them."""
