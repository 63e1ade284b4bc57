"""The verbs, in the categories of the distribution-spec: pull, push, discover, manage."""
