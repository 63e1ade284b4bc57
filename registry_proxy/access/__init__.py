"""Who may do what: identities, tokens, grants and the decision over them."""
